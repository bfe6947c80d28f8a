"""Data sets: sources, decoding, augmentation, batches, and preparation."""
