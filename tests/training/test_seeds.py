"""Initialization, order and augmentation have seeds of their own."""

from repvgg_jax.config.build import build
from tests.support.runs import tiny_config


def test_seeds_of_initialization_order_and_augmentation_are_apart():
    def drawn(seed=0, data=None):
        config = tiny_config(train_steps=1)
        config.seed = seed
        config.data.update(padding=2, **data or {})
        experiment = build(config)
        seeds = (experiment.data_seed, experiment.augmentation_seed)
        batch = next(experiment.train_data.train_batches(*seeds))
        return batch["label"].tolist(), batch["image"].tobytes()

    base = drawn()
    assert drawn(1, {"seed": 0, "augmentation_seed": 0}) == base
    order = drawn(0, {"seed": 1})
    assert order[0] != base[0]
    crops = drawn(0, {"augmentation_seed": 1})
    assert crops[0] == base[0]
    assert crops[1] != base[1]
    both = drawn(1)
    assert both[0] == order[0]
    assert both[1] != order[1]
