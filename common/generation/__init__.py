"""Rain from a trained generator: latent experiments, rain for any photo, a transform for other pipelines."""

__all__ = ["RainAugment"]


def __getattr__(name: str) -> object:
    if name in __all__:  # only when asked for: torchvision's transforms take three seconds to import
        from .transform import RainAugment

        return RainAugment
    raise AttributeError(f"module {__name__} has no attribute {name}")
