"""Functions of arrays, without Flax: convolution and batch normalization, with their gradients."""
