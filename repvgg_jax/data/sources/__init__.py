"""Data sources, which return labeled images by index."""
