"""What a decision layer from `budget` can be expected to keep of a Softmax head: our results at other budgets.

`expected.json` beside this file holds them; `python -m codehead.lab.reports.expectations` renders it from result files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

FILE = Path(__file__).with_name("expected.json")
METRICS = ("top1_share", "perplexity_ratio")
EDGE = 0.01
"""Relative: a budget that is so near to the least or the largest measured one counts as that."""


@dataclass(frozen=True)
class Value:
    """A mean over seeds and the half width of its 95% interval (None for a single seed)."""

    mean: float
    half_width: float | None


@dataclass(frozen=True)
class SetUp:
    """One experiment: a model, a way in which heads learnt, and what they kept at several budgets."""

    results: str
    """The folder of the result files."""
    setting: str
    hidden_size: int
    num_classes: int
    learnt: str
    """How, in words."""
    seeds: int
    points: tuple[tuple[float, dict[str, Value]], ...]
    """Share of the Softmax head's bytes, rising, and each of METRICS there."""

    @property
    def measured(self) -> tuple[float, float]:
        """The least and the largest share of bytes."""
        return self.points[0][0], self.points[-1][0]

    def at(self, share: float) -> dict[str, Value] | None:
        """Each metric at a share of bytes, between the two next measured ones linear in log bytes; None beyond them.

        So are half widths: that of a mean between two is not wider.
        """
        for (low, before), (high, after) in pairwise(self.points):
            if low * (1 - EDGE) <= share <= high * (1 + EDGE):
                way = min(max(math.log(share / low) / math.log(high / low), 0.0), 1.0)
                return {name: _between(before[name], after[name], way) for name in METRICS}
        return None


def _between(before: Value, after: Value, way: float) -> Value:
    mean = (1 - way) * before.mean + way * after.mean
    if before.half_width is None or after.half_width is None:
        return Value(mean, None)
    return Value(mean, (1 - way) * before.half_width + way * after.half_width)


@cache
def set_ups(file: Path = FILE) -> Sequence[SetUp]:
    """Every experiment of the packaged file."""
    found = []
    for entry in json.loads(file.read_text(encoding="utf-8"))["set_ups"]:
        points = tuple(
            (point["byte_share"], {name: Value(**point[name]) for name in METRICS}) for point in entry.pop("points")
        )
        found.append(SetUp(**entry, points=points))
    return tuple(found)
