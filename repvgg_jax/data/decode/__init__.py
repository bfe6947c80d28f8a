"""Image decoding and resizing."""
