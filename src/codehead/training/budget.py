"""A run whose decision layer a budget chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from codehead.errors import ConfigurationError
from codehead.recommendation import recommend
from codehead.training.blocks import require_block
from codehead.training.config import ENDS, RunConfig


def within(values: Mapping[str, Any], budget: str) -> tuple[RunConfig, str]:
    """The run of these values with the decision layer of a budget, which learns from the old head; and it in words.

    ConfigurationError if they name a decision layer themselves.
    """
    for name in ("decision", "distil"):
        require_block(values.get(name) or {}, name)
    named = [f"decision.{key}" for key in values.get("decision") or {}] + [key for key in ENDS if values.get(key)]
    if named:
        raise ConfigurationError(
            f"budget is {budget!r}, which chooses the decision layer; omit it, or {', '.join(named)}"
        )
    if not isinstance(values.get("model"), str):
        raise ConfigurationError(f"budget is {budget!r}, a share of the head of an existing model; give --model")
    found, seed = recommend(values["model"], budget=budget), values.get("seed", 0)
    learning = {"seed": seed, **(values.get("distil") or {})}
    layer = {"decision": replace(found.config, seed=seed).to_dict(), "distil": learning}
    return RunConfig.from_dict({**values, **layer}), found.config.told(found.shape)
