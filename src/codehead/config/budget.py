"""The best decision layer for a budget of bytes, a codeword length or a speed.

A `plan` is the starting point: a linear head, a binary code and no per-token extras.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

from codehead.codes.design import minimal_length
from codehead.config.blocks import require
from codehead.config.size import ID_BYTES, Matrix, ModelShape
from codehead.errors import ConfigurationError

if TYPE_CHECKING:
    from codehead.config.decision import DecisionConfig

CODE_SHARE = 0.5
"""Share of the budget for the codewords of all tokens and the rows of the head that predict them."""
LONGER_SHARE = 0.97
"""The share including a bias per token and the extra bits of frequent tokens; dense rows get the rest."""
FREQUENT = 4
"""One token in this many has extra bits."""
STEP = 8
"""Codeword lengths are multiples of this, since a packed row takes whole bytes, unless the user gives one."""
SLACK = 1e-6
"""Tolerance in bytes: a decimal share is not exact in binary."""
LONGEST = 1024
"""Bits; longer codes cost more time than their accuracy is worth."""
COMPLETE = 1.25
"""Codeword bits per hidden dimension, up to which rows are stored in int4. Rounding errors add up over the bits: in a
finished model, codes with two or more lost what the saved bytes had bought; codes with half a bit gained."""

NUMBER = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]+)?", re.ASCII)


def read_share(budget: str | float) -> float:
    """`"5%"`, `"0.05"` or `0.05` as 0.05; ConfigurationError unless the share is above 0 and at most 1."""
    share = _number(budget, "%", 100)
    if share is None or not 0 < share <= 1:
        raise ConfigurationError(f"budget is {budget!r}; give a share of the old head's bytes, such as 5% or 0.05")
    return share


def read_speed(speed: str | float) -> float:
    """`"4x"`, `"4"` or `4` as 4.0; ConfigurationError unless it is a finite number above 0."""
    times = _number(speed, "x", 1)
    if times is None or not 0 < times < math.inf:
        raise ConfigurationError(f"speed is {speed!r}; give how many times fewer multiply-adds, such as 4x")
    return times


def for_share(plan: DecisionConfig, shape: ModelShape, share: float) -> DecisionConfig:
    """The decision layer for `share` (0 to 1) of the Softmax head's bytes in bf16.

    It has the longest code within CODE_SHARE of them, a bias per token, the longest extra bits within LONGER_SHARE, and
    dense rows for the rest. A budget too small for that gets the shortest code, without a bias if necessary. Rows are
    in int4, or in int8 if the codewords are too long for int4. ConfigurationError names the smallest possible share if
    even the shortest code does not fit.
    """
    total = math.floor(share * shape.softmax_bytes + SLACK)
    code = _longest_code(replace(plan, weights="int4"), shape, total)
    if _bytes(code, shape) > total:
        least = math.ceil(_bytes(code, shape) / shape.softmax_bytes * 1e4) / 1e4
        raise ConfigurationError(
            f"budget is {100 * share:g}% of the Softmax head's bytes, but {shape.num_classes:,} codewords of "
            f"{code.bits} bits and the head for them take {least:.2%}; give at least that"
        )
    return _borne(_filled(code, shape, total), _longest_code(replace(plan, weights="int8"), shape, total), shape, total)


def for_bits(plan: DecisionConfig, shape: ModelShape, bits: int) -> DecisionConfig:
    """The decision layer with this codeword length, and the extras that the matching budget would add.

    ConfigurationError if the bits are too few to tell the tokens apart, or take more bytes than the Softmax head.
    """
    require(bits, "bits", minimum=1)
    least = minimal_length(shape.num_classes)
    if bits < least:
        raise ConfigurationError(f"bits is {bits}, but {shape.num_classes:,} tokens need at least {least}")
    code, wide = (replace(plan, bits=bits, weights=weights) for weights in ("int4", "int8"))
    if _bytes(code, shape) > shape.softmax_bytes:
        raise ConfigurationError(
            f"bits is {bits}: codewords and head take {_bytes(code, shape) / shape.softmax_bytes:.0%} of the Softmax "
            "head's bytes; give fewer"
        )
    totals = [min(int(_bytes(some, shape) / CODE_SHARE), shape.softmax_bytes) for some in (code, wide)]
    return _borne(_filled(code, shape, totals[0]), wide, shape, totals[1])


def for_speed(plan: DecisionConfig, shape: ModelShape, times: float) -> DecisionConfig:
    """The largest decision layer with at most 1 / `times` of the Softmax head's multiply-adds per token.

    It is one that some budget gives, so that accuracy measured at budgets predicts its own. ConfigurationError names
    the highest possible speed if even the shortest code is slower.
    """
    codes = [replace(plan, weights="int4", bits=bits) for bits in lengths_for(shape.num_classes)]
    codes = [code for code in codes if _bytes(code, shape) <= shape.softmax_bytes]
    for code in reversed(codes):
        if _speed(code, shape) >= times:  # extras only make a code slower
            found = for_bits(plan, shape, code.bits or 0)
            if _speed(found, shape) >= times:
                return found
    raise ConfigurationError(
        f"speed is {times:g} times fewer multiply-adds than Softmax's, but the shortest code for "
        f"{shape.num_classes:,} tokens comes to {math.floor(10 * _highest_speed(plan, shape, codes)) / 10:.1f} times; "
        "give no more than that"
    )


def _speed(layer: DecisionConfig, shape: ModelShape) -> float:
    """How many times fewer multiply-adds it takes than Softmax."""
    return shape.softmax_weights / layer.multiply_adds(shape)


def _highest_speed(plan: DecisionConfig, shape: ModelShape, codes: list[DecisionConfig]) -> float:
    """The highest speed of the decision layers of these `codes`, shortest first; 0 if there are none."""
    highest = 0.0
    for code in codes:
        if _speed(code, shape) <= highest:
            break
        highest = max(highest, _speed(for_bits(plan, shape, code.bits or 0), shape))
    return highest


def lengths_for(num_classes: int) -> range:
    """The codeword lengths to choose from that can tell `num_classes` tokens apart."""
    return range(-(-minimal_length(num_classes) // STEP) * STEP, LONGEST + 1, STEP)


def bears_int4(layer: DecisionConfig, shape: ModelShape) -> bool:
    """Whether the codewords of a layer are short enough for rows in int4."""
    return (layer.bits or 0) + layer.extra_bits <= COMPLETE * shape.hidden_size


def _number(text: Any, unit: str, per_unit: float) -> float | None:
    """The number written in ASCII digits, with or without a unit; None if the text is not a number."""
    if not isinstance(text, str):
        is_number = isinstance(text, Real) and not isinstance(text, bool)  # numpy's too
        return float(text) if is_number else None
    digits = text.removesuffix(unit)
    return float(digits) / (per_unit if text.endswith(unit) else 1) if NUMBER.fullmatch(digits) else None


def _bytes(layer: DecisionConfig, shape: ModelShape) -> int:
    return layer.size(shape).bytes_stored


def _longest(lengths: range, make: Callable[[int], DecisionConfig], shape: ModelShape, total: float) -> int | None:
    """The longest code within `total` bytes; None if even the shortest is larger."""
    fitting = bisect_right(lengths, total, key=lambda bits: _bytes(make(bits), shape))
    return lengths[fitting - 1] if fitting else None


def _longest_code(code: DecisionConfig, shape: ModelShape, total: int) -> DecisionConfig:
    """The longest code within its share of `total` bytes, or else the shortest possible."""
    lengths = lengths_for(shape.num_classes)
    bits = _longest(lengths, lambda bits: replace(code, bits=bits), shape, CODE_SHARE * total)
    return replace(code, bits=bits or lengths[0])


def _borne(found: DecisionConfig, code: DecisionConfig, shape: ModelShape, total: int) -> DecisionConfig:
    """The layer `found` with int4 rows; if its codewords are too long for that, `code` with int8 rows, if it fits."""
    keeps = bears_int4(found, shape) or _bytes(code, shape) > total
    return found if keeps else _filled(code, shape, total)


def _filled(code: DecisionConfig, shape: ModelShape, total: int) -> DecisionConfig:
    """The code with the bias, extra bits and dense rows that fill `total` bytes.

    If all frequent tokens get dense rows, extra bits would be wasted on them, so there are none.
    """
    biased = replace(code, token_bias=True)
    found = biased if _bytes(biased, shape) <= total else code
    frequent = shape.num_classes // FREQUENT
    lengths = lengths_for(frequent) if frequent > 1 else range(0)
    longer = _longest(lengths, lambda bits: _longer(found, frequent, bits), shape, LONGER_SHARE * total)
    if longer is None:
        return _listed(found, shape, total)
    listed = _listed(_longer(found, frequent, longer), shape, total)
    return _listed(found, shape, total) if listed.num_dense_rows >= frequent else listed


def _longer(code: DecisionConfig, frequent: int, bits: int) -> DecisionConfig:
    return replace(code, extra_bits=bits, extra_bit_tokens=frequent)


def _listed(found: DecisionConfig, shape: ModelShape, total: int) -> DecisionConfig:
    """The layer with the dense rows that fill `total` bytes."""
    row = Matrix(1, shape.hidden_size).stored(found.weights) + ID_BYTES
    return replace(found, dense_rows=min((total - _bytes(found, shape)) // row, shape.num_classes))
