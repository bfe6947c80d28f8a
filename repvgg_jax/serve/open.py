"""Opens classifiers: ONNX files with onnxruntime, StableHLO files and workdirs with JAX."""

from pathlib import Path

from repvgg_jax.errors import UsageError
from repvgg_jax.serve.model import Model


def open_model(path: Path, step: int | None = None) -> Model:
    """Returns the classifier in an .onnx or .stablehlo file, or of the run in a workdir.

    Args:
      path: a file or a workdir.
      step: step of a run's weights; by default that of the latest checkpoint.

    Raises:
      UsageError: if there is none, it cannot be read, or its class names do not match its outputs.
    """
    if path.suffix.lower() not in (".onnx", ".stablehlo") and not path.is_file():
        from repvgg_jax.serve.run_model import open_run

        return open_run(path, step)
    if step is not None:
        raise UsageError(f"--step={step} is for a workdir; {path} holds a single step")
    if not path.is_file():
        raise UsageError(f"--model={path}: no such file")
    if path.suffix.lower() == ".onnx":
        from repvgg_jax.serve.onnx_model import open_onnx

        return open_onnx(path)
    if path.suffix.lower() == ".stablehlo":
        from repvgg_jax.serve.stablehlo_model import open_stablehlo

        return open_stablehlo(path)
    raise UsageError(f"--model={path}: give an .onnx file, a .stablehlo file or a workdir")
