"""The commands of main.py, one module each; `modes.py` lists them."""
