"""The lines printed at the start of a run."""

from collections.abc import Mapping
from typing import Any

from repvgg_jax.bench.counting import count_parameters
from repvgg_jax.config.build import Experiment
from repvgg_jax.config.describe import data_name
from repvgg_jax.nets import abstract
from repvgg_jax.training.environment import describe
from repvgg_jax.training.summary import training_loss_terms


def opening(experiment: Experiment, environment: Mapping[str, Any]) -> str:
    """Returns a few lines on a run about to start: data, net, length, device and loss."""
    train, evaluation = experiment.train_data, experiment.eval_data
    images, size = len(train.source), train.transform.image_size
    pixels = f"{size}x{size} pixels"
    if (other := evaluation.transform.eval_size) != size:
        pixels += f" ({other}x{other} in evaluation)"
    if (own := train.source.image_size) not in (None, (size, size)):
        height, width = own
        pixels += f" resized from {height}x{width}"
    epochs = f"{experiment.steps * train.batch_size / images:.3g}"
    epochs += " epoch" if epochs == "1" else " epochs"
    every = experiment.eval_every
    when = f"every {every:,} steps" if every < experiment.steps else "at the end"
    training = (
        f"{experiment.steps:,} steps of {train.batch_size:,} images ({epochs}), evaluated {when}"
    )
    rows = {
        "data": f"{data_name(experiment.config['data'])}: "
        f"{images:,} training and {len(evaluation.source):,} evaluation images of {pixels}, "
        f"{train.source.num_classes:,} classes",
        "net": f"{count_parameters(abstract(experiment.net)):,} parameters, "
        f"{experiment.net.num_classes:,} outputs",
        "training": training,
        "device": describe(environment),
    }
    if terms := training_loss_terms(experiment.step_options):
        rows["loss"] = f"includes {terms} in training, not in evaluation"
    return "\n".join(f"  {name:<10}{text}" for name, text in rows.items())
