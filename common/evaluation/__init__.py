"""Derain folders of images, measure results, draw them."""
