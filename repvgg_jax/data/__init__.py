"""From files to batches: sources, decoding, augmentation, and preparation of data sets."""
