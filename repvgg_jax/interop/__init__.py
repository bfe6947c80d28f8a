"""Import and export of weights from and to other frameworks."""
