"""Opens the run in a workdir as a classifier, run by JAX on all devices of the process."""

from pathlib import Path

import numpy as np

from repvgg_jax.checkpoint.load import load_form
from repvgg_jax.config.build import make_transform
from repvgg_jax.config.classes import class_names
from repvgg_jax.config.workdir import read_config
from repvgg_jax.runtime.mesh import make_mesh, replicate, shard_batch
from repvgg_jax.serve.model import CPU_BATCH, Model, names_of_outputs
from repvgg_jax.training.prediction import batch_probabilities, batch_shape


def open_run(workdir: Path, step: int | None = None) -> Model:
    """Returns the classifier of a run, in the form of `load_form`.

    Its batches are padded to a power of two of images on each device, so that few programs are
    compiled.

    Raises:
      UsageError: if there is no run or no checkpoint of the step, or it has more class names than
        outputs.
    """
    config = read_config(workdir)
    names = names_of_outputs(class_names(workdir), config.model.num_classes, str(workdir))
    net, variables, form = load_form(workdir, step)
    mesh = make_mesh()
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    most = min(config.train.eval_batch_size, CPU_BATCH if on_cpu else config.train.eval_batch_size)
    most = -(-most // mesh.size) * mesh.size
    variables = replicate(variables, mesh)
    statistics = {"mean": tuple(config.data.mean), "std": tuple(config.data.std)}

    def run(images: np.ndarray) -> np.ndarray:
        count = len(images)
        size = batch_shape(-(-count // mesh.size), most // mesh.size) * mesh.size
        images = np.pad(images, [(0, size - count), (0, 0), (0, 0), (0, 0)])
        batch = shard_batch({"image": images}, mesh)["image"]
        return np.asarray(batch_probabilities(net, variables, batch, **statistics))[:count]

    return Model(f"{workdir}: {form}", names, make_transform(config), run, most, compiles=True)
