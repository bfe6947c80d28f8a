"""`--mode=prepare`."""

from __future__ import annotations

from ml_collections import ConfigDict

from repvgg_jax.data.prepare.prepare import describe_splits, find_prepared, prepare
from repvgg_jax.errors import UsageError


def run_prepare(config: ConfigDict | None) -> None:
    """Write the data set that the config names from its official archives, once for all runs.

    Raises:
      UsageError: without a config, for data that need no preparing, and whatever `prepare` raises.
    """
    if config is None:
        raise UsageError("--mode=prepare needs --config, such as --config configs/cifar10.py")
    data = config.data
    if data.source != "tfds":
        raise UsageError(
            f"data.source={data.source} needs no preparing; that is for --config.data.source=tfds"
        )
    there = find_prepared(data.name, data.data_dir)
    path = there or prepare(data.name, data.data_dir, data.manual_dir)
    # Not by say, which starts the devices.
    print(
        f"{data.name} {'is already' if there else 'is now'} prepared in {path}: {describe_splits(path)}; "
        "the same command without --mode=prepare trains on it"
    )
