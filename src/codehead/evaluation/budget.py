"""A budget of bytes, a codeword length or a speed → the decision layer that makes most of it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from codehead.codes.design import minimal_length
from codehead.codes.packing import row_bytes
from codehead.errors import ConfigurationError
from codehead.evaluation.size import FLOAT32_BYTES, WEIGHT_BYTES, DecisionSize, ModelShape

CODE_SHARE = 0.5
"""Of the budget: the codewords of all tokens and the rows of the head that predict them."""
LONGER_SHARE = 0.97
"""The same with a bias per token and the further bits of frequent tokens; dense rows get what is left."""
FREQUENT = 4
"""One token in so many has a longer codeword."""
STEP = 8
"""Codeword lengths are multiples of this, unless one is asked for: a packed row takes whole bytes."""
ID_BYTES = 4
"""Of a token in the shortlist."""
SLACK = 1e-6
"""Bytes: a share that was written with few decimals is not exact in binary."""
LONGEST = 1024
"""Bits: longer codes cost more time than they bring accuracy."""
INT4, INT8 = 4, 8
COMPLETE = 1.25
"""Bits of a codeword per hidden number, up to which rows bear int4. What rounding does to each bit adds up: of a
finished model, codes with two and more lost what the bytes had bought, and codes with half of one gained."""


@dataclass(frozen=True)
class Allocation:
    """A decision layer for a model of this shape, its rows in int4 or int8, its bias in int8."""

    shape: ModelShape
    bits: int
    token_bias: bool = True
    refined_bits: int = 0
    """Further bits of the most frequent tokens."""
    shortlist: int = 0
    """Dense rows."""
    row_bits: int = INT4
    """Of a weight in a row."""

    @property
    def refined(self) -> int:
        """Tokens with further bits."""
        return self.shape.num_classes // FREQUENT if self.refined_bits else 0

    @property
    def rows(self) -> int:
        """Of the head: for bits, further bits and listed tokens."""
        return self.bits + self.refined_bits + self.shortlist

    @property
    def size(self) -> DecisionSize:
        """What it weighs: rows, a bias in int8, a scale in bf16 for each row and for the bias."""
        hidden, tokens = self.shape.hidden_size, self.shape.num_classes
        biases = tokens if self.token_bias else 0
        weights = self.rows * hidden + biases
        scales = self.rows + int(self.token_bias)
        packed = tokens * row_bytes(self.bits)
        further = self.refined * row_bytes(self.refined_bits) + (row_bytes(tokens) if self.refined else 0)
        unpacked = FLOAT32_BYTES * (tokens * self.bits + self.refined * self.refined_bits)
        stored = (
            self.rows * _row_bytes(hidden, self.row_bits)
            + biases
            + WEIGHT_BYTES * scales
            + further
            + ID_BYTES * self.shortlist
        )
        return DecisionSize(weights + scales, stored + packed, stored + packed + unpacked, stored + unpacked, packed)

    @property
    def bears_int4(self) -> bool:
        """Whether its codewords are short enough for rows in int4."""
        return self.bits + self.refined_bits <= COMPLETE * self.shape.hidden_size

    @property
    def bytes_stored(self) -> int:
        """What it takes on disk."""
        return self.size.bytes_stored

    @property
    def byte_share(self) -> float:
        """Of the Softmax head's bytes in bf16."""
        return self.bytes_stored / softmax_bytes(self.shape)

    @property
    def multiply_adds(self) -> int:
        """Per token: head, dense rows, and the products of the bit logits with the codeword matrices.

        `hidden · rows + bits · V`, and `refined_bits` for every longer codeword; each symbol of a codeword as a number,
        as the matmul decoder has it; additions of biases are not counted. A Softmax head has `hidden · V`.
        """
        codewords = self.bits * self.shape.num_classes + self.refined_bits * self.refined
        return self.shape.hidden_size * self.rows + codewords

    @property
    def speed(self) -> float:
        """How many times the multiply-adds a Softmax head has."""
        return softmax_multiply_adds(self.shape) / self.multiply_adds

    def decision(self) -> dict[str, Any]:
        """The keywords of `attach`, but for what it learns from text."""
        return {
            "code": "additive",
            "bits": self.bits,
            "loss": "codeword",
            "refined": self.refined,
            "refined_bits": self.refined_bits,
            "shortlist": self.shortlist,
            "token_bias": self.token_bias,
        }


def softmax_bytes(shape: ModelShape) -> int:
    """What a Softmax head takes in bf16."""
    return WEIGHT_BYTES * shape.num_classes * shape.hidden_size


def softmax_multiply_adds(shape: ModelShape) -> int:
    """Those of a Softmax head per token."""
    return shape.num_classes * shape.hidden_size


def int4_share(shape: ModelShape) -> float:
    """What the Softmax head itself takes in int4, with a scale per row, of its bytes in bf16."""
    return (_row_bytes(shape.hidden_size, INT4) + WEIGHT_BYTES) / (WEIGHT_BYTES * shape.hidden_size)


def allocate(shape: ModelShape, share: float) -> Allocation:
    """The decision layer for `share` (0 to 1) of the Softmax head's bytes in bf16.

    The longest code within CODE_SHARE of them; a bias per token; the longest further bits within LONGER_SHARE; dense
    rows for what is left. With too small a budget, the shortest code there is, without a bias if need be. Rows in int4,
    or in int8 if that makes codewords too long for int4. ConfigurationError names the least share if even the shortest
    code is too much.
    """
    if not 0 < share <= 1:
        raise ConfigurationError(f"budget is {share!r}; give a share of the Softmax head's bytes, such as 5%")
    total = math.floor(share * softmax_bytes(shape) + SLACK)
    code = _longest_code(shape, INT4, total)
    if code.bytes_stored > total:
        raise ConfigurationError(
            f"budget is {share:.2%} of the Softmax head's bytes, but {shape.num_classes:,} codewords of {code.bits} "
            f"bits and the head for them take {math.ceil(code.byte_share * 1e4) / 1e4:.2%}; give that at least"
        )
    return _borne(_filled(code, total), _longest_code(shape, INT8, total), total)


def allocate_bits(shape: ModelShape, bits: int) -> Allocation:
    """The decision layer of a given codeword length, with all that a budget which comes to it would add.

    ConfigurationError if so many bits cannot tell the tokens apart, or weigh more than the Softmax head.
    """
    least = minimal_length(shape.num_classes)
    if bits < least:
        raise ConfigurationError(f"bits is {bits}, but {shape.num_classes:,} tokens need codewords of {least} at least")
    code, wide = (_code(shape, bits, row_bits) for row_bits in (INT4, INT8))
    if code.bytes_stored > softmax_bytes(shape):
        raise ConfigurationError(
            f"bits is {bits}: codewords and head take {code.byte_share:.0%} of the Softmax head's bytes; give fewer"
        )
    totals = [min(int(some.bytes_stored / CODE_SHARE), softmax_bytes(shape)) for some in (code, wide)]
    return _borne(_filled(code, totals[0]), wide, totals[1])


def allocate_speed(shape: ModelShape, times: float) -> Allocation:
    """The largest decision layer with at most 1 / `times` of the Softmax head's multiply-adds per token.

    Of those that budgets come to, so that what was measured at budgets tells what to expect. ConfigurationError names
    the highest speed if even the shortest code has more.
    """
    if not times > 0:
        raise ConfigurationError(
            f"speed is {times!r}; give how many times fewer multiply-adds than Softmax's, as in 4x"
        )
    found = [allocate_bits(shape, bits) for bits in _lengths(shape.num_classes) if _weighs_less(shape, bits)]
    fitting = [allocation for allocation in found if allocation.speed >= times]
    if not fitting:
        most = max((allocation.speed for allocation in found), default=0.0)
        raise ConfigurationError(
            f"speed is {times:g} times fewer multiply-adds than Softmax's, but the shortest code for "
            f"{shape.num_classes:,} tokens comes to {math.floor(10 * most) / 10:.1f} times; give no more than that"
        )
    return fitting[-1]


def _lengths(num_classes: int) -> range:
    """The codeword lengths to choose from that tell so many tokens apart."""
    return range(-(-minimal_length(num_classes) // STEP) * STEP, LONGEST + 1, STEP)


def _longest(lengths: range, make: Callable[[int], Allocation], total: float) -> int | None:
    """The longest code within `total` bytes; None if the shortest is beyond them."""
    fitting = bisect_right(lengths, total, key=lambda bits: make(bits).bytes_stored)
    return lengths[fitting - 1] if fitting else None


def _longest_code(shape: ModelShape, row_bits: int, total: int) -> Allocation:
    """The longest code within its share of `total` bytes, or the shortest there is."""
    lengths = _lengths(shape.num_classes)
    bits = _longest(lengths, lambda bits: _code(shape, bits, row_bits), CODE_SHARE * total)
    return _code(shape, bits or lengths[0], row_bits)


def _borne(found: Allocation, code: Allocation, total: int) -> Allocation:
    """What was found with rows in int4; if it does not bear them, a `code` that has them in int8, if it fits."""
    return found if found.bears_int4 or code.bytes_stored > total else _filled(code, total)


def _weighs_less(shape: ModelShape, bits: int) -> bool:
    return _code(shape, bits, INT4).bytes_stored <= softmax_bytes(shape)


def _code(shape: ModelShape, bits: int, row_bits: int) -> Allocation:
    return Allocation(shape, bits, token_bias=False, row_bits=row_bits)


def _filled(code: Allocation, total: int) -> Allocation:
    """With the bias, the further bits and the dense rows that bring it to `total` bytes.

    Where the most frequent tokens all come to have rows of their own, further bits would be lost on them.
    """
    biased = replace(code, token_bias=True)
    found = biased if biased.bytes_stored <= total else code
    frequent = found.shape.num_classes // FREQUENT
    if frequent > 1:
        longer = partial(_longer, found)
        found = longer(_longest(_lengths(frequent), longer, LONGER_SHARE * total) or 0)
    listed = _listed(found, total)
    return _listed(replace(found, refined_bits=0), total) if listed.shortlist >= listed.refined else listed


def _listed(found: Allocation, total: int) -> Allocation:
    """With the dense rows that bring it to `total` bytes."""
    row = _row_bytes(found.shape.hidden_size, found.row_bits) + WEIGHT_BYTES + ID_BYTES
    return replace(found, shortlist=min((total - found.bytes_stored) // row, found.shape.num_classes))


def _row_bytes(width: int, row_bits: int) -> int:
    return -(-width * row_bits // 8)


def _longer(found: Allocation, bits: int) -> Allocation:
    return replace(found, refined_bits=bits)
