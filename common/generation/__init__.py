"""Rain from a trained generator: latent experiments, rain for any photo, a transform for other pipelines."""
