"""What is done to a trained Softmax head to have something to compare a code with: a block of a protocol file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from codehead.config import DecisionConfig
from codehead.errors import ConfigurationError
from codehead.registry import did_you_mean
from codehead.training.blocks import read_block, require, require_block
from codehead.training.config import WEIGHTS, Distillation, as_of_today

CONVERTED = ("decision", "distil", *WEIGHTS)  # keys of a run that say what a head is converted to
HALF = "half"
"""A width that gives the MTL head half of the Softmax parameters."""
FILE_KEY = "peer"
"""What result files and older protocol files call a baseline."""


@dataclass(frozen=True)
class BaselineConfig:
    """What is done to a trained Softmax head: it is quantised, trimmed to the frequent tokens, both, or converted."""

    bits: int | None = None  # per weight
    group: int = 32  # neighbours in a row that share scale and offset
    corrected: bool = False  # spread rounding errors over the columns still to be rounded (GPTQ)
    keep: int | None = None  # the tokens that a trimmed head keeps, the most frequent of the training text
    convert: dict[str, Any] | None = None
    """The `decision`, `distil`, `int8` and `int4` of a run: the head is replaced as by `codehead convert`."""

    def __post_init__(self) -> None:
        if self.convert is not None:
            self._check_conversion()
            return
        if self.bits is None and self.keep is None:
            raise ConfigurationError(
                "a baseline has bits, to be quantised, or keep, to be trimmed, or both, or convert: give one"
            )
        given = [name for name in ("bits", "keep") if getattr(self, name) is not None]
        for name in ("group", *given):
            require(getattr(self, name), f"baseline.{name}", minimum=1)
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise ConfigurationError(f"baseline.bits is {self.bits!r}; give 2 to 8")

    def _check_conversion(self) -> None:
        require_block(self.convert, "baseline.convert")
        assert self.convert is not None
        if self.bits is not None or self.keep is not None:
            raise ConfigurationError(
                "baseline.convert replaces the head, so that bits and keep have nothing to compress"
            )
        for key in self.convert:
            if key not in CONVERTED:
                hint = did_you_mean(key, CONVERTED) or f"; known are {', '.join(CONVERTED)}"
                raise ConfigurationError(f"unknown key 'baseline.convert.{key}'{hint}")
        if not self.convert.get("decision"):
            raise ConfigurationError(
                "baseline.convert has no decision; describe the decision layer that the head becomes"
            )
        check_decision(self.convert["decision"], "baseline.convert")
        learning = as_of_today(self.convert, "baseline.convert.").get("distil") or {}
        read_block(Distillation, learning, "baseline.convert.distil")

    def as_dict(self) -> dict[str, Any]:
        """The fields; `convert` if it is set."""
        return {key: value for key, value in asdict(self).items() if key != "convert" or value is not None}


def check_decision(decision: Mapping[str, Any] | None, place: str) -> None:
    """Raise ConfigurationError for a decision layer that cannot be."""
    if decision is not None:
        require_block(decision, f"{place}.decision")
        known = {key: value for key, value in decision.items() if (key, value) != ("width", HALF)}
        DecisionConfig.from_dict(known, f"{place}.decision")
