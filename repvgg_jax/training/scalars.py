"""TensorBoard files of a run."""

import sys
import time
from pathlib import Path
from typing import Any


def open_scalars(workdir: Path, start_step: int) -> Any:
    """Returns a tensorboardX writer of `<workdir>/tensorboard` for the steps after `start_step`."""
    return _summary_writer()(
        str(workdir / "tensorboard"),
        # TensorBoard hides events of older files with steps >= purge_step.
        purge_step=start_step + 1,
        # File names contain whole seconds; a quick restart must not overwrite the last file.
        filename_suffix=f".{time.monotonic_ns()}",
    )


def _summary_writer() -> Any:
    """Imports tensorboardX, but not PyTorch, which it would import too, in one or two seconds."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter
