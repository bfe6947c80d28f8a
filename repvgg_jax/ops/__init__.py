"""Array functions that do not use Flax: convolution, batch normalization and their gradients."""
