"""The definition of a sweep: variants of one config, and their published figures."""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Overrides = dict[str, Any]


class PaperPair(NamedTuple):
    """Top-1 in percent from a block's own paper, without and with the block."""

    reference: str  # the variant that corresponds to the net without the block
    without: float
    with_it: float
    source: str  # paper, table, net and data


@dataclass(frozen=True)
class Sweep:
    """A set of configs to compare with each other."""

    title: str
    baseline: str  # the variant that the others are compared with
    variants: dict[str, Overrides]  # name -> dotted fields of configs/default.py and their values
    published: dict[str, float] = field(default_factory=dict)  # variant -> top-1 in percent
    source: str = ""  # table and protocol of the published figures
    own_papers: dict[str, PaperPair] = field(default_factory=dict)  # by variant, for other nets
    note: str = ""  # for readers of the tables

    def row_overrides(self, variant: str) -> Overrides:
        """Returns a variant's fields with JSON types, as in rows."""
        return json.loads(json.dumps(self.variants[variant]))
