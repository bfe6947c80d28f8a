"""Re-parameterizable blocks and their fusion, one file per paper."""
