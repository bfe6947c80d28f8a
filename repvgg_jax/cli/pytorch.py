"""`--mode=import` and `--mode=to_torch`: convert weights from and to PyTorch."""

from pathlib import Path

from ml_collections import ConfigDict

from repvgg_jax.checkpoint.load import load
from repvgg_jax.checkpoint.manager import check_saved, open_manager, save, steps
from repvgg_jax.config.build import build, make_source
from repvgg_jax.config.resolve import resolve
from repvgg_jax.config.workdir import check_workdir, check_writable, lock_run, make_workdir
from repvgg_jax.errors import UsageError
from repvgg_jax.interop.layouts import layouts_of
from repvgg_jax.interop.pytorch import from_torch, to_torch
from repvgg_jax.interop.pytorch_files import read_torch, save_torch
from repvgg_jax.runtime.processes import primary, print_once
from repvgg_jax.training.state import fresh_state


def run_import(config: ConfigDict, workdir: Path, weights: str | Path) -> None:
    """Creates a run, usable in all other modes, whose checkpoint of step 0 has PyTorch weights.

    The outputs are taken to be the classes of the config's data, if the data are there and have as
    many.

    Raises:
      UsageError: if the weights do not fit the net, or the workdir already has checkpoints.
    """
    if config.init_from is not None:
        raise UsageError("--mode=import takes its weights from --weights; unset config.init_from")
    config = resolve(config, workdir)
    experiment = build(config, open_data=False)
    check_workdir(config, workdir)
    _check_no_checkpoint(workdir)
    check_writable(workdir)
    contents = read_torch(weights)
    if any(name.startswith("params/") for name in contents):
        raise UsageError(
            f"{weights} has arrays of this package, not PyTorch's; read them with "
            "repvgg_jax.export.safetensors_file.read_safetensors"
        )
    variables = from_torch(experiment.net, contents)
    state = fresh_state(experiment).starting_from(variables)
    with lock_run(workdir):
        _check_no_checkpoint(workdir)  # another process may have written one in the meantime
        make_workdir(experiment.config, workdir, _class_names(config))
        with open_manager(workdir, experiment.keep) as manager:
            position = {"seed": experiment.data_seed, "step": 0}
            save(manager, state.eval_variables, state.optimizer_state, position)
            check_saved(manager, wait=True)
    print_once(f"imported {weights} as the checkpoint of step 0 in {workdir}")


def _check_no_checkpoint(workdir: Path) -> None:
    if found := steps(workdir):
        raise UsageError(
            f"--workdir={workdir} has a checkpoint of step {found[-1]}; choose another --workdir"
        )


def _class_names(config: ConfigDict) -> tuple[str, ...] | None:
    """Returns the class names of the config's data, if they are there and match the outputs."""
    try:
        names = make_source(config, "test").class_names
    except UsageError:
        return None
    return names if len(names) == config.model.num_classes else None


def run_to_torch(workdir: Path, weights: str | Path, layout: str | None, fused: bool) -> None:
    """Writes the latest checkpoint, or the fused weights, to a file that PyTorch loads.

    In a multi-process run, process 0 writes it.

    Raises:
      UsageError: if there is no run, or PyTorch's net would compute different outputs.
    """
    net, variables = load(workdir, fused=fused)
    layout = layout or layouts_of(net)[0]
    replacing = ", in place of an earlier file" if Path(weights).exists() else ""
    if primary():
        save_torch(weights, to_torch(net, variables, layout))
    print_once(f"wrote the weights of {workdir} to {weights} with {layout} names{replacing}")
