"""The modes of main.py: `MODES` describes each and names the function that runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from repvgg_jax.bench.input import run_bench_data
from repvgg_jax.bench.models import run_bench
from repvgg_jax.cli.compile import run_compile
from repvgg_jax.cli.evaluate import run_eval
from repvgg_jax.cli.export import run_export
from repvgg_jax.cli.fuse import run_fuse
from repvgg_jax.cli.predict import run_predict
from repvgg_jax.cli.prepare import run_prepare
from repvgg_jax.cli.pytorch import run_import, run_to_torch
from repvgg_jax.cli.train import run_train
from repvgg_jax.config.workdir import has_checkpoints
from repvgg_jax.training.train import WITH_LESS_MEMORY

RUN_WORKDIR = "runs/<config>"


@dataclass(frozen=True)
class Mode:
    """A command of main.py.

    Attributes:
      run: function called with the flags in `needs` and `takes` as keyword arguments.
      help: short description of the command.
      example: arguments of main.py, without `--mode`.
      needs: required flags.
      takes: optional flags.
      workdir: default of `--workdir`; `RUN_WORKDIR` is a folder named after the config.
      keeps_programs: False to disable the compilation cache, for commands that measure compile
        times or compile nothing.
      if_exhausted: advice for the case that the memory of a device or of the machine is exhausted.
      resumes_from: point from which the command resumes after an interrupt; None for the start.
    """

    run: Callable[..., None]
    help: str
    example: str
    needs: tuple[str, ...] = ("config",)
    takes: tuple[str, ...] = ("workdir",)
    workdir: str | None = RUN_WORKDIR
    keeps_programs: bool = True
    if_exhausted: str = "end other programs that use it, or run the command where there is more"
    resumes_from: str | None = None

    def when_interrupted(self, workdir: Path | None = None) -> str:
        """Returns the message after an interrupt, which ended the command."""
        if self.resumes_from is None:
            return "interrupted; rerun to start again"
        if workdir is not None and not has_checkpoints(workdir):
            return "interrupted; nothing was saved yet; rerun to start again"
        return f"interrupted; rerun to resume from the {self.resumes_from}"


MODES = {
    "train": Mode(
        run_train,
        "train, evaluate, fuse, verify and report; resumes if interrupted",
        "--config configs/quickstart.py --workdir runs/quickstart",
        if_exhausted=WITH_LESS_MEMORY,
        resumes_from="last checkpoint",
    ),
    "eval": Mode(
        run_eval,
        "evaluate a checkpoint and the fused weights of a run",
        "--workdir runs/quickstart",
        needs=("workdir",),
        takes=("config", "step"),
        if_exhausted="lower train.eval_batch_size of a --config",
    ),
    "fuse": Mode(
        run_fuse,
        "fuse a checkpoint of a run and verify the result",
        "--workdir runs/quickstart",
        needs=("workdir",),
        takes=("config", "step"),
        if_exhausted="lower fuse.verify_images of a --config",
    ),
    "export": Mode(
        run_export,
        "write the fused net of a run for other programs, and verify each file",
        "--workdir runs/quickstart --format=onnx,stablehlo,torch,safetensors",
        needs=("workdir", "format"),
        takes=("opset", "dynamic_size", "preprocess", "allow_train_form", "step"),
    ),
    "predict": Mode(
        run_predict,
        "print the classes of images, and write them as CSV or JSON lines",
        "--workdir runs/quickstart --images photos --output runs/classes.csv",
        needs=("images",),
        takes=("workdir", "model", "top_k", "output", "step"),
    ),
    "prepare": Mode(
        run_prepare,
        "download a data set or read its archives, and convert it for training",
        "--config configs/cifar10.py",
        takes=(),
        keeps_programs=False,
        resumes_from="last finished file",
    ),
    "import": Mode(
        run_import,
        "start a run from PyTorch weights (torch.save or safetensors)",
        "--config configs/a0.py --weights RepVGG-A0-train.pth",
        needs=("config", "weights"),
    ),
    "to_torch": Mode(
        run_to_torch,
        "write the weights of a run for PyTorch (.pth, .pt or .safetensors)",
        "--workdir runs/a0 --weights runs/a0.pth --layout timm",
        needs=("workdir", "weights"),
        takes=("layout", "fused"),
    ),
    "compile": Mode(
        run_compile,
        "compile a training step for absent devices; print memory and FLOPs",
        "--config configs/b1.py --topology v5e:4x4",
        needs=("config", "topology"),
        workdir=None,
        keeps_programs=False,
    ),
    "bench": Mode(
        run_bench,
        "time the train form, the plain net and the fused net",
        "--config configs/b1.py --config.model.dtype=bfloat16",
        workdir="runs/bench",
        if_exhausted="give smaller bench.batch_sizes",
        keeps_programs=False,
    ),
    "bench_data": Mode(
        run_bench_data,
        "time the input pipeline against tf.data and PyTorch",
        "--config configs/a0.py --config.data.source=folder",
        workdir=None,
    ),
}
