"""The input pipeline: from files to batches."""
