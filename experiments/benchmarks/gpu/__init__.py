"""The benchmark of GPUs: this package beside PyTorch, and the training of small nets."""
