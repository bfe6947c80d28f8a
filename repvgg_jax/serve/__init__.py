"""Classification of images by a run or an exported file, and an HTTP server for it.

Serving an ONNX file does not require JAX, so modules import it inside functions only.
"""
