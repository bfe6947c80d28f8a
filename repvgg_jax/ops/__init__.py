"""Functions of arrays: convolution and batch normalization, without Flax."""
