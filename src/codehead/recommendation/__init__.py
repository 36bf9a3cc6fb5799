"""Which decision layer fits a budget, what it costs, and the accuracy our experiments predict."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from codehead.codes.packing import LEAST_SCANNED
from codehead.config import DecisionConfig, ModelShape
from codehead.errors import ConfigurationError
from codehead.models.named import model_shape

DEFAULT_BUDGET = "5%"
QUARTER = 0.25
"""Share of bytes from which int4 keeps as much as a code (results/benchmarks/frontier-real-1.json)."""


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


@dataclass(frozen=True)
class Recommendation:
    """A decision layer for a model of this shape."""

    shape: ModelShape
    config: DecisionConfig

    @property
    def byte_share(self) -> float:
        """Its stored bytes, as a share of the Softmax head's in bf16."""
        return self.config.byte_share(self.shape)

    @property
    def evidence(self) -> list[SetUp]:
        """Our experiments: on pretrained models, then on small ones; the nearest hidden size first in each group."""
        size = self.shape.hidden_size
        return sorted(set_ups(), key=lambda some: (some.model is None, abs(math.log(some.hidden_size / size))))

    @property
    def verdict(self) -> str:
        """In one line: what it keeps and saves, whether it is faster, and whether something else is better."""
        return " ".join(filter(None, [self._keeps(), self._saves(), self._faster(), self._instead()]))

    def _keeps(self) -> str:
        share = f"{100 * self.byte_share:.2g}%"
        for some in self.evidence:
            values = some.at(self.byte_share)
            if values is not None:
                top1, perplexity = values["top1_share"].mean, values["perplexity_ratio"].mean
                kept = (
                    f"{share} of the bytes kept {top1:.0%} of Softmax's top-1 accuracy at {perplexity:.2f} times its "
                    "perplexity"
                )
                if some.model is not None:
                    return f"On {some.model} ({some.results}) {kept}."
                return (
                    f"In a small model (H = {some.hidden_size:,}, {some.results}) {kept}; a real model may lose more."
                )
        return f"None of our experiments covers {share} of the bytes: measure it with convert."

    def _saves(self) -> str:
        saved = self.shape.softmax_bytes - self.config.size(self.shape).bytes_stored
        if self.shape.tied:
            return f"It reads {_bytes(saved)} less per token, but saves no memory: the head is the embedding."
        return f"It saves {_bytes(saved)} of {_bytes(self.shape.softmax_bytes)}."

    def _faster(self) -> str:
        if not self._is_scanned:
            return "So small a vocabulary gains no time."
        if find_spec("faiss") and self.byte_share <= TIMED * (1 + EDGE):
            return "Its step is faster on a CPU, which scans the codewords; nothing was timed on a GPU."
        times = self.config.multiply_adds(self.shape) / self.shape.softmax_weights
        why = (
            f"heads of more than {TIMED:.0%} were not timed" if find_spec("faiss") else "without FAISS (codehead[fast])"
        )
        return f"A token takes {times:.2g} times the multiply-adds of Softmax; {why}."

    def _instead(self) -> str:
        if round(self.byte_share, 2) >= QUARTER:
            return (
                "The old head in int4, with a scale per 64 weights and corrected errors, takes 28% and needs no "
                "training: prefer that."
            )
        return "For the same answers, faster: codehead screen." if self._is_scanned else ""

    @property
    def _is_scanned(self) -> bool:
        """Whether there are enough tokens to gain time from a code."""
        return self.shape.num_classes >= LEAST_SCANNED


def recommend(
    model: Any, budget: str | float | None = None, bits: int | None = None, speed: str | float | None = None
) -> Recommendation:
    """The decision layer for a model (hub id, folder, model in memory, or ModelShape); a budget of 5% by default.

    Raises:
        ConfigurationError: more than one of `budget`, `bits` and `speed`, a value that cannot be met, or a checkpoint
            that is coded or quantised.
    """
    shape = shape_of(model)
    given = [name for name, value in (("budget", budget), ("bits", bits), ("speed", speed)) if value is not None]
    if len(given) > 1:
        raise ConfigurationError(f"give one of budget, bits and speed, not {' and '.join(given)}")
    if bits is not None:
        return Recommendation(shape, DecisionConfig.for_bits(shape, bits))
    if speed is not None:
        return Recommendation(shape, DecisionConfig.for_speed(shape, speed))
    return Recommendation(shape, DecisionConfig.for_budget(shape, DEFAULT_BUDGET if budget is None else budget))


def shape_of(model: Any) -> ModelShape:
    """The shape of a stock model given by name, in memory, or as a ModelShape.

    ConfigurationError if the checkpoint has a decision layer already, or is quantised.
    """
    shape = model_shape(str(model)) if isinstance(model, str | Path) else ModelShape.of_model(model)
    if shape.quantised == "codehead":
        raise ConfigurationError("this model has a decision layer already; give its stock checkpoint")
    if shape.quantised is not None:
        raise ConfigurationError(
            f"this checkpoint is quantised with {shape.quantised}, and transformers has one slot for a quantizer in "
            "config.json; give the checkpoint before it was quantised"
        )
    return shape


# How much of a Softmax head's accuracy a decision layer of a budget should keep, from our results at other budgets.
#
# `expected.json` beside this file holds them; `benchmarks/expectations.py` renders it from result files.


FILE = Path(__file__).with_name("expected.json")
TIMED = 0.05
"""The largest share of bytes whose head was timed (results/benchmarks/decision-layer-cpu.json)."""
METRICS = ("top1_share", "perplexity_ratio")
EDGE = 0.01
"""Relative: a budget this close to the smallest or the largest measured one counts as that one."""


@dataclass(frozen=True)
class Value:
    """A mean over seeds and the half width of its 95% interval (None for a single seed)."""

    mean: float
    half_width: float | None


@dataclass(frozen=True)
class SetUp:
    """One experiment: a model, how its heads were trained, and what they kept at several budgets."""

    results: str
    """The folder of the result files."""
    setting: str
    hidden_size: int
    num_classes: int
    learnt: str
    """How the heads were trained, in words."""
    seeds: int
    points: tuple[tuple[float, dict[str, Value]], ...]
    """Shares of the Softmax head's bytes, ascending, each with the METRICS there."""
    model: str | None = None
    """The name of a pretrained model; None for a small one trained for minutes."""

    @property
    def measured(self) -> tuple[float, float]:
        """The smallest and the largest share of bytes."""
        return self.points[0][0], self.points[-1][0]

    def at(self, share: float) -> dict[str, Value] | None:
        """Each metric at a share of bytes, interpolated linearly in log bytes; None outside the measured range.

        Half widths are interpolated too: a weighted mean of two has no wider one.
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
def set_ups() -> Sequence[SetUp]:
    """Every experiment of the packaged file."""
    found = []
    for entry in json.loads(FILE.read_text(encoding="utf-8"))["set_ups"]:
        points = tuple(
            (point["byte_share"], {name: Value(**point[name]) for name in METRICS}) for point in entry.pop("points")
        )
        found.append(SetUp(**entry, points=points))
    return tuple(found)
