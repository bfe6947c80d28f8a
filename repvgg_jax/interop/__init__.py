"""Import and export of weights of other frameworks."""
