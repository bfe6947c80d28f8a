"""What a sweep is: variants of one config, and what papers have of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Overrides = dict[str, Any]


class PaperPair(NamedTuple):
    """A block in its own paper: top-1 in percent of a net with another block, and with this one.

    `beside` is that other block's variant; `source` says paper, table, net and data.
    """

    beside: str
    without: float
    with_it: float
    source: str


@dataclass(frozen=True)
class Sweep:
    """Configs that are compared with each other.

    Attributes:
      title: what is varied.
      baseline: the variant that the others are compared with.
      variants: name -> dotted fields of configs/default.py and their values.
      published: variant -> the paper's top-1 in percent, where it has one.
      source: of those figures: table and protocol.
      own_papers: variant -> its own paper's figures, on another net.
      note: what a reader of the table should know.
    """

    title: str
    baseline: str
    variants: dict[str, Overrides]
    published: dict[str, float] = field(default_factory=dict)
    source: str = ""
    own_papers: dict[str, PaperPair] = field(default_factory=dict)
    note: str = ""

    def own(self, variant: str) -> Overrides:
        """A variant's fields as a row has them: of JSON's types."""
        return json.loads(json.dumps(self.variants[variant]))
