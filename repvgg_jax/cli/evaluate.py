"""`--mode=eval`: evaluates a checkpoint and the fused weights of a run."""

from pathlib import Path

from ml_collections import ConfigDict

from repvgg_jax.checkpoint.fused import fused_step
from repvgg_jax.checkpoint.load import load, load_trained
from repvgg_jax.config.build import make_eval_data
from repvgg_jax.config.describe import model_name
from repvgg_jax.config.fields import check_values
from repvgg_jax.config.resolve import resolve
from repvgg_jax.config.workdir import read_config
from repvgg_jax.runtime.mesh import make_mesh
from repvgg_jax.runtime.processes import inform_once, primary, print_once
from repvgg_jax.training.confusion import CONFUSION_PICTURE, show_confusion
from repvgg_jax.training.evaluation import Evaluation


def run_eval(config: ConfigDict | None, workdir: Path, step: int | None = None) -> None:
    """Evaluates a checkpoint of a run, and its fused weights if there are any.

    The checkpoint is that of `step`, or else the latest readable one. The evaluation data are those
    of `config`, which defaults to the run's own config. `confusion.png`, which belongs to the
    report, is drawn only without `config` and `step`.

    Raises:
      UsageError: if there is no run or no checkpoint of the step, or the config cannot be used.
    """
    chosen = evaluation_config(config, workdir)
    inform_once(f"evaluating {model_name(read_config(workdir))} in {workdir}")
    evaluation = open_evaluation(chosen, workdir)
    net, variables, loaded = load_trained(workdir, step)
    forms = {"train form": (net, variables)}
    if (fused := fused_step(workdir)) is not None:
        name = "fused" if fused == loaded else f"fused at step {fused}, not {loaded}"
        forms[name] = load(workdir, fused=True, step=fused)
    results = {form: evaluation(*pair) for form, pair in forms.items()}
    width = max(map(len, results))
    for form, result in results.items():
        top5 = f"top-5 {result['top5']:.2%}  " if "top5" in result else ""
        print_once(
            f"{form:<{width}}   top-1 {result['top1']:.2%}  {top5}"
            f"loss {result['loss']:.4f}  {result['count']:,} images"
        )
    if primary() and (matrix := results["train form"].get("confusion")) is not None:
        own = config is None and step is None
        picture = workdir / CONFUSION_PICTURE if own else None
        if len(results) > 1:
            print_once("classes, in the train form:")
        show_confusion(matrix, evaluation.data.source.class_names, picture)


def evaluation_config(config: ConfigDict | None, workdir: Path) -> ConfigDict:
    """Returns a config to evaluate a run with: the run's own by default.

    Fields that `config` leaves unset are the run's, except `data.holdout` for other data: all
    images of such class folders are evaluated.
    """
    run = read_config(workdir)
    if config is None:
        return run
    resolved = resolve(config, workdir)
    if config.data.holdout is None and config.data.data_dir != run.data.data_dir:
        resolved.data.holdout = None
    return resolved


def open_evaluation(config: ConfigDict, workdir: Path) -> Evaluation:
    """Returns the evaluation described by a config, on all devices, ignoring `config.mesh`."""
    check_values(config)
    mesh = make_mesh()
    return Evaluation(make_eval_data(config, mesh, run=workdir), mesh)
