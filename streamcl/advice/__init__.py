"""Advice before the first run: the image size, depth and feature blocks that fit a budget, by measurement."""
