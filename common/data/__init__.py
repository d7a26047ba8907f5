"""Images in and out, pairs and crops, and the demo's free data set."""
