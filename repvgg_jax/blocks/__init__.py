"""Re-parameterizable blocks, one paper a file, each with its fusion."""
