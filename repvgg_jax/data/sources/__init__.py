"""Data sources: labelled images by index."""
