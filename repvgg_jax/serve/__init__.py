"""Classification of images by a run or an exported file, and an HTTP server for it.

A server of an ONNX file needs no JAX, so modules import it inside functions only.
"""
