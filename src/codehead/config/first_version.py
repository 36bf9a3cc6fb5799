"""Translates what version 0.1 of codehead wrote to today's form: decision layers, runs, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codehead.config.blocks import check_keys, require_block, require_bool, require_that
from codehead.config.size import INTEGER_BITS
from codehead.errors import ConfigurationError

RENAMED = {"shortlist": "dense_rows", "refined": "extra_bit_tokens", "refined_bits": "extra_bits"}
"""Keys of version 0.1 → today's."""
REMOVED = {
    "token_scale": "a scale per token was never better than a bias per token",
    "shortlist_split": "dense rows that split the probability were never better than rows that add to it",
}


def as_of_today(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The values with keys of version 0.1 under today's names; ConfigurationError for options that were removed."""
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
        del found["extra_bits"]  # its default was 64 even without such tokens
    elif found.get("extra_bit_tokens") and "refined" in values:
        found.setdefault("extra_bits", 64)
    for key in INTEGER_BITS:  # in a run: the final form of its decision layer's weights
        value = found.pop(key, False)
        require_bool(value, f"{place}.{key}")
        if value and found.setdefault("weights", key) != key:
            raise ConfigurationError(f"{place}.{key} is true, but weights is {found['weights']}; omit one")
    if found.get("head") == "tower":
        params = found.get("head_params") or {}
        found |= {"head": "mtl", "head_params": {"groups": 1, **params} if isinstance(params, Mapping) else params}
    return {key: value for key, value in found.items() if value is not None}


ENDS = (*INTEGER_BITS, "packed")
"""Keys of a run for the final form of its decision layer; today these are fields of the decision layer."""
TRUNK = {"trunk_steps": "backbone_steps", "trunk_learning_rate": "backbone_learning_rate"}
"""Keys of `distil` → today's."""


def run_as_of_today(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The values of a run, at this place of a file, with keys of version 0.1 moved to where they belong today.

    ConfigurationError if they no longer belong anywhere.
    """
    blocks = dict(values)
    ends = {key: blocks.pop(key) for key in ENDS if key in blocks}
    for key, value in ends.items():
        require_bool(value, f"{place}{key}")
    ends = {key: value for key, value in ends.items() if value}
    if ends and blocks.get("decision") is None:
        raise ConfigurationError(f"{next(iter(ends))} is given, but there is no new decision layer: give decision")
    if ends:
        require_block(blocks["decision"], "decision")
        blocks["decision"] = {**blocks["decision"], **ends}
    if isinstance(blocks.get("distil"), Mapping):
        blocks["distil"] = {TRUNK.get(key, key): value for key, value in blocks["distil"].items()}
    return blocks


REQUIRED = (
    "design", "bits", "num_classes", "ternary", "seed", "params", "checksum", "head", "head_options", "loss", "decoder",
    "shortlist", "token_bias", "stock",
)  # fmt: skip
OPTIONAL: dict[str, Any] = {
    "version": "0.1.0", "refined": 0, "refined_bits": 0, "shortlist_split": False, "token_scale": False,
    "rounded": False, "rounded_bits": 8, "packed": False, "fresh": "",
}  # fmt: skip


def checkpoint_as_of_today(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry `quantization_config` as it is written today.

    ConfigurationError names a field that is missing, unknown or impossible, or that requests a removed feature.
    """
    check_keys(entry, (*REQUIRED, *OPTIONAL), "")
    missing = [name for name in REQUIRED if name not in entry]
    if missing:
        raise ConfigurationError(f"missing: {', '.join(missing)}")
    values = {**OPTIONAL, **entry}
    for name in REMOVED:
        if values[name]:
            raise ConfigurationError(
                f"{name} is {values[name]!r}, which codehead no longer supports; load the checkpoint with version 0.1"
            )
    for name in ("rounded", "packed", "token_bias"):
        require_bool(values[name], name)
    for name in ("head_options", "params"):
        require_block(values[name], name)
    require_that(values["rounded_bits"] in (4, 8), "rounded_bits", values["rounded_bits"], "give 4 or 8")
    return {
        "decision": _decision(values),
        "codebook": {name: values[name] for name in ("num_classes", "ternary", "checksum", "seed")}
        | {"length": values["bits"]},
        **{name: values[name] for name in ("stock", "version", "fresh")},
    }


DECISION = ("head", "loss", "decoder", "shortlist", "refined", "refined_bits", "token_bias", "packed")
"""Fields of a checkpoint of version 0.1 that a run of version 0.1 gives its decision layer by the same names."""


def _decision(values: dict[str, Any]) -> dict[str, Any]:
    """The decision layer in the form of a run, for `as_of_today`."""
    parity, options = values["params"].get("parity", 0), values["head_options"]
    length = values["bits"] - (parity if isinstance(parity, int) else 0)
    return {
        **{name: values[name] for name in DECISION},
        "code": values["design"],
        "bits": None if values["design"] == "one_vs_all" else length,
        "code_params": values["params"],
        "width": options.get("width"),
        "head_params": {name: value for name, value in options.items() if name != "width"},
        "weights": f"int{values['rounded_bits']}" if values["rounded"] else "float",
    }
