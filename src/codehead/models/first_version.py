"""Reads what version 0.1 of codehead wrote into `config.json`."""

from __future__ import annotations

from typing import Any

from codehead.errors import CheckpointError

REQUIRED = (
    "design", "bits", "num_classes", "ternary", "seed", "params", "checksum", "head", "head_options", "loss", "decoder",
    "shortlist", "token_bias", "stock",
)  # fmt: skip
OPTIONAL: dict[str, Any] = {
    "version": "0.1.0", "refined": 0, "refined_bits": 0, "shortlist_split": False, "token_scale": False,
    "rounded": False, "rounded_bits": 8, "packed": False, "fresh": "",
}  # fmt: skip
REMOVED = ("shortlist_split", "token_scale")


def first_version(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry `quantization_config` as it is written today.

    A CheckpointError names a field that is missing, unknown or impossible, or that asks for what is no longer there.
    """
    for name in REQUIRED:
        if name not in entry:
            raise _wrong(name, "missing from")
    for name in entry:
        if name not in REQUIRED and name not in OPTIONAL:
            raise _wrong(name, "not a field of codehead in")
    values = {**OPTIONAL, **entry}
    for name in REMOVED:
        if values[name]:
            raise CheckpointError(
                f"quantization_config.{name} in config.json is {values[name]!r}, which codehead has no longer; load "
                "the checkpoint with version 0.1"
            )
    for name in ("rounded", "packed", "token_bias"):
        if not isinstance(values[name], bool):
            raise _wrong(name, f"{values[name]!r}, which is neither true nor false, in")
    for name in ("head_options", "params"):
        if not isinstance(values[name], dict):
            raise _wrong(name, f"{values[name]!r}, which is no block of values, in")
    if values["rounded_bits"] not in (4, 8):
        raise _wrong("rounded_bits", f"{values['rounded_bits']!r}, neither 4 nor 8, in")
    return {
        "decision": {key: value for key, value in _decision(values).items() if value is not None},
        "codebook": {
            "length": values["bits"],
            "num_classes": values["num_classes"],
            "ternary": values["ternary"],
            "checksum": values["checksum"],
            "seed": values["seed"],
        },
        "stock": values["stock"],
        "version": values["version"],
        "fresh": values["fresh"],
    }


def _decision(values: dict[str, Any]) -> dict[str, Any]:
    options = dict(values["head_options"])
    is_tower = values["head"] == "tower"  # today an mtl head whose bits share hidden layers
    parity = values["params"].get("parity", 0)
    implicit = values["design"] == "one_vs_all"
    return {
        "code": values["design"],
        "bits": None if implicit else values["bits"] - (parity if isinstance(parity, int) else 0),
        "code_params": values["params"],
        "head": "mtl" if is_tower else values["head"],
        "width": options.pop("width", None),
        "head_params": {"groups": 1, **options} if is_tower else options,
        "loss": values["loss"],
        "decoder": values["decoder"],
        "dense_rows": values["shortlist"],
        "extra_bits": values["refined_bits"] if values["refined"] else 0,
        "extra_bit_tokens": values["refined"],
        "token_bias": values["token_bias"],
        "weights": f"int{values['rounded_bits']}" if values["rounded"] else "float",
        "packed": values["packed"],
    }


def _wrong(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"quantization_config.{name} is {what} config.json; restore config.json from the original checkpoint"
    )
