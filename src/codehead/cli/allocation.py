"""What `recommend` and `convert` share: a budget, a codeword length or a speed → a decision layer, in words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codehead.errors import ConfigurationError

if TYPE_CHECKING:
    from codehead.evaluation.budget import Allocation
    from codehead.evaluation.size import ModelShape
    from codehead.training.config import RunConfig

NUMBER = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""What `float` reads is more: digits of every script, underscores, spaces, nan."""


def chosen(
    shape: ModelShape, budget: str | None, bits: int | None, speed: str | None, default: str | None = None
) -> Allocation:
    """The decision layer that one of --budget, --bits and --speed asks for; a budget of `default` if none is given.

    ConfigurationError if several are given, or none without a default, or if the checkpoint is quantised or coded.
    """
    from codehead.evaluation.budget import allocate, allocate_bits, allocate_speed

    _check_plain(shape)
    given = [name for name, value in (("--budget", budget), ("--bits", bits), ("--speed", speed)) if value is not None]
    if len(given) > 1 or not (given or default):
        raise ConfigurationError(
            f"give one of --budget (such as 5%), --bits (such as 64) and --speed (such as 4x), not "
            f"{' and '.join(given) or 'none'}"
        )
    if bits is not None:
        return allocate_bits(shape, bits)
    if speed is not None:
        return allocate_speed(shape, read_speed(speed))
    return allocate(shape, read_budget((default or "") if budget is None else budget))


def within(values: Mapping[str, Any], budget: str) -> tuple[RunConfig, Allocation]:
    """The run of these values with the decision layer of a budget, which learns from the old head; and that layer.

    ConfigurationError if they name a decision layer themselves.
    """
    from codehead.evaluation.size import model_shape
    from codehead.training.blocks import require_block
    from codehead.training.config import RunConfig

    for name in ("decision", "distil"):
        require_block(values.get(name) or {}, name)
    if values.get("decision"):
        raise ConfigurationError(
            f"--budget is {budget!r}, which chooses the decision layer; leave it away, or "
            + ", ".join(f"decision.{key}" for key in values["decision"])
        )
    if not isinstance(values.get("model"), str):
        raise ConfigurationError(f"--budget is {budget!r}, a share of the head of an existing model; give --model")
    found, seed = chosen(model_shape(values["model"]), budget, None, None), values.get("seed", 0)
    check_rows(values, found)
    learning = {"seed": seed, **(values.get("distil") or {})}
    layer = {"decision": {**found.decision(), "seed": seed}, "distil": learning}
    return RunConfig.from_dict({rows(found): True, "packed": True, **values, **layer}), found


def rows(found: Allocation) -> str:
    """The key of a run that says what its rows end as: int4 or int8."""
    return f"int{found.row_bits}"


def check_rows(values: Mapping[str, Any], found: Allocation) -> None:
    """Raise ConfigurationError if the values of a run have rows end as something else than their bytes count as."""
    from codehead.training.config import WEIGHTS

    for name in WEIGHTS:
        if values.get(name) and name != rows(found):
            raise ConfigurationError(
                f"{name} is {values[name]!r}, but what was asked for is filled with rows in {rows(found)}; leave "
                f"{name} away"
            )


def read_budget(text: str) -> float:
    """`5%` or `0.05` as 0.05; a ConfigurationError otherwise."""
    share = _number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < share <= 1:
        raise ConfigurationError(f"--budget is {text!r}; give a share of the old head's bytes, such as 5% or 0.05")
    return share


def read_speed(text: str) -> float:
    """`4x` or `4` as 4.0; a ConfigurationError otherwise."""
    times = _number(text.removesuffix("x"))
    if not 0 < times < math.inf:
        raise ConfigurationError(f"--speed is {text!r}; give how many times fewer multiply-adds, such as 4x")
    return times


def told(found: Allocation) -> str:
    """The decision layer and its bytes, in a line."""
    from codehead.evaluation.budget import softmax_bytes

    parts = [f"{found.bits} bits"]
    parts += [f"{found.refined_bits} more for the {found.refined:,} most frequent tokens"] if found.refined else []
    parts += [f"dense rows for {found.shortlist:,}"] if found.shortlist else []
    parts += ["a bias for every token"] if found.token_bias else []
    parts += [f"rows in {rows(found)}"]
    shape = found.shape
    return (
        f"H = {shape.hidden_size:,}, V = {shape.num_classes:,}: {', '.join(parts)}. {found.bytes_stored:,} bytes, "
        f"{found.byte_share:.2%} of the Softmax head's {softmax_bytes(shape):,} in bf16."
    )


def _check_plain(shape: ModelShape) -> None:
    from codehead.models.description import METHOD

    if shape.quantised == METHOD:
        raise ConfigurationError("this model has a decision layer already; give its stock checkpoint")
    if shape.quantised is not None:
        raise ConfigurationError(
            f"this checkpoint is quantised with {shape.quantised}, and transformers has one slot for a quantizer in "
            "config.json; give the checkpoint before it was quantised"
        )


def _number(text: str) -> float:
    """The number that a text is, in ASCII digits alone (`5`, `0.05`, `.5`, `5e-2`); 0 if it is none."""
    return float(text) if NUMBER.fullmatch(text) else 0.0
