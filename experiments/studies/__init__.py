"""Individual studies."""
