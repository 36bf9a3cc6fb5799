"""Blocks of decision layers as version 0.1 of codehead wrote them, under today's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codehead.config.size import INTEGER_BITS
from codehead.errors import ConfigurationError

RENAMED = {"shortlist": "dense_rows", "refined": "extra_bit_tokens", "refined_bits": "extra_bits"}
"""Keys of version 0.1 → today's."""
REMOVED = {
    "token_scale": "a scale per token was never better than a bias per token",
    "shortlist_split": "dense rows that split the probability were never better than rows that add to it",
}


def as_of_today(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The values with keys of version 0.1 under today's names; ConfigurationError for what is gone."""
    found = {key: value for key, value in values.items() if key != "keep_head"}
    for key, reason in REMOVED.items():
        if found.pop(key, False):
            raise ConfigurationError(f"{place}.{key} was an option of version 0.1 ({reason}); remove it")
    for old, new in RENAMED.items():
        if old in found and new in found:
            raise ConfigurationError(f"{place}.{old} is called {new} now, and both are given; omit {old}")
        if old in found:
            found[new] = found.pop(old)
    if "refined_bits" in values and not found.get("extra_bit_tokens"):
        del found["extra_bits"]  # had a default of 64, whatever tokens there were
    elif found.get("extra_bit_tokens") and "refined" in values:
        found.setdefault("extra_bits", 64)
    for key in INTEGER_BITS:  # of a run: what the weights of its decision layer end as
        value = found.pop(key, False)
        if not isinstance(value, bool):
            raise ConfigurationError(f"{place}.{key} is {value!r}; give true or false")
        if value and found.setdefault("weights", key) != key:
            raise ConfigurationError(f"{place}.{key} is true, but weights end as {found['weights']}; omit one")
    if found.get("head") == "tower":
        params = found.get("head_params") or {}
        found |= {"head": "mtl", "head_params": {"groups": 1, **params} if isinstance(params, Mapping) else params}
    return {key: value for key, value in found.items() if value is not None}
