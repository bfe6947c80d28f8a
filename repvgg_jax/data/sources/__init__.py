"""Data sources: labeled images by index."""
