"""Rows of made-up runs for tests of the report."""

import json
import zlib

from experiments.sweeps.ablations import SWEEPS

TOP1 = {  # of three seeds, in percent
    "none": [69.1, 69.9, 70.4],
    "identity": [71.0, 71.2, 71.9],
    "1x1": [71.6, 72.2, 73.1],
    "both": [72.0, 73.1, 72.9],
}


def row(name, seed, top1=None, sweep="branches", /, **changes):
    """Returns a row as `append_row` writes it."""
    value = (TOP1[name][seed] if top1 is None else top1) / 100
    steps = list(range(25, 301, 25))
    return {
        **{"version": 1, "sweep": sweep, "name": name, "seed": seed, "protocol": "cifar10_short"},
        **{
            "config_hash": f"{zlib.crc32(f'{sweep} {name} {seed}'.encode()):012x}",
            "commit": "0" * 40,
        },
        **{"dirty": False, "device": "cpu x1", "steps": 300, "step_seconds": 0.2 + value / 9},
        "overrides": json.loads(json.dumps(SWEEPS[sweep].variants.get(name, {})))
        if sweep in SWEEPS
        else {},
        "top1": {"train_form": value, "fused": value},
        "fusion_error": 5e-7 * (1 + seed),
        "temporaries_bytes": None,
        "params": {"train_form": 1100, "fused": 1000},
        "macs": {"train_form": 2e6, "fused": 1e6 * (1 + len(name))},
        "finished": f"2026-01-0{1 + seed}T00:00:00Z",
        "curves": {
            "train": {"step": steps, "loss": [2.0 - s / 300 for s in steps], "top1": steps},
            "eval": {"step": [150, 300], "loss": [1.0, 0.8], "top1": [value / 2, value]},
        },
        **changes,
    }


def all_rows():
    rows = [row(name, seed) for name in TOP1 for seed in range(3)]
    rows += [row(name, 0, 70.0, "groups") for name in ("1", "2", "4")]
    return rows
