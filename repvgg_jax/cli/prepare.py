"""`--mode=prepare`: converts a data set for training."""

from ml_collections import ConfigDict

from repvgg_jax.config.fields import check_values
from repvgg_jax.data.prepare.prepare import describe_splits, find_prepared, prepare
from repvgg_jax.errors import UsageError
from repvgg_jax.runtime.processes import print_once


def run_prepare(config: ConfigDict) -> None:
    """Converts the data set of a config from its official archives, once for all runs.

    Raises:
      UsageError: if the data need no preparation, or their archives cannot be found or read.
    """
    check_values(config)
    data = config.data
    if data.source != "tfds":
        raise UsageError(
            f"data.source={data.source} needs no preparation; only data.source=tfds does"
        )
    there = find_prepared(data.name, data.data_dir)
    path = there or prepare(data.name, data.data_dir, data.manual_dir)
    state = "is already" if there else "is now"
    print_once(
        f"{data.name} {state} prepared in {path}: {describe_splits(path)}; "
        "to train on it, run the same command without --mode=prepare"
    )
