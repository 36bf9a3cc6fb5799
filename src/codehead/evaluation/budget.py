"""A budget of bytes, a codeword length or a speed → the decision layer that makes most of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from codehead.codes.design import minimal_length
from codehead.codes.packing import row_bytes
from codehead.errors import ConfigurationError
from codehead.evaluation.size import FLOAT32_BYTES, WEIGHT_BYTES, DecisionSize, ModelShape

CODE_SHARE = 0.8
"""Of the budget: codewords, the head that predicts them and a bias per token; dense rows get what is left."""
STEP = 8
"""Codeword lengths are multiples of this, unless one is asked for: a packed row takes whole bytes."""
ID_BYTES = 4
"""Of a token in the shortlist."""
LONGEST = 1024
"""Bits: longer codes cost more time than they bring accuracy."""


@dataclass(frozen=True)
class Allocation:
    """Codeword length, dense rows and bias per token of a decision layer for a model of this shape."""

    shape: ModelShape
    bits: int
    shortlist: int
    token_bias: bool

    @property
    def size(self) -> DecisionSize:
        """What it weighs, with weights in bf16."""
        hidden, tokens = self.shape.hidden_size, self.shape.num_classes
        parameters = hidden * (self.bits + self.shortlist) + (tokens if self.token_bias else 0)
        packed, unpacked = tokens * row_bytes(self.bits), FLOAT32_BYTES * tokens * self.bits
        weights = WEIGHT_BYTES * parameters + ID_BYTES * self.shortlist
        return DecisionSize(parameters, weights + packed, weights + packed + unpacked, weights + unpacked, packed)

    @property
    def bytes_stored(self) -> int:
        """What it takes on disk, with weights in bf16."""
        return self.size.bytes_stored

    @property
    def byte_share(self) -> float:
        """Of the Softmax head's bytes, both stored with weights in bf16."""
        return self.bytes_stored / softmax_bytes(self.shape)

    @property
    def multiply_adds(self) -> int:
        """Per token: head, dense rows, and the product of the bit logits with the codeword matrix.

        `hidden · (bits + shortlist) + bits · V`, each symbol of a codeword as a number, as the matmul decoder has it;
        additions of biases are not counted. A Softmax head has `hidden · V`.
        """
        return self.shape.hidden_size * (self.bits + self.shortlist) + self.bits * self.shape.num_classes

    @property
    def speed(self) -> float:
        """How many times the multiply-adds a Softmax head has."""
        return softmax_multiply_adds(self.shape) / self.multiply_adds

    def decision(self) -> dict[str, Any]:
        """The keywords of `attach`, but for what it learns from text."""
        return {
            "code": "itq",
            "bits": self.bits,
            "loss": "codeword",
            "shortlist": self.shortlist,
            "token_bias": self.token_bias,
        }


def softmax_bytes(shape: ModelShape) -> int:
    """What a Softmax head takes in bf16."""
    return WEIGHT_BYTES * shape.num_classes * shape.hidden_size


def softmax_multiply_adds(shape: ModelShape) -> int:
    """Those of a Softmax head per token."""
    return shape.num_classes * shape.hidden_size


def allocate(shape: ModelShape, share: float) -> Allocation:
    """The code, shortlist and bias for `share` (0 to 1) of the Softmax head's bytes in bf16.

    The longest code that leaves a fifth of the budget to dense rows; below that, the shortest code there is, without
    a bias if need be. ConfigurationError names the least share if even that is too much.
    """
    if not 0 < share <= 1:
        raise ConfigurationError(f"budget is {share!r}; give a share of the Softmax head's bytes, such as 5%")
    total = int(share * softmax_bytes(shape))
    fitting = [bits for bits in _lengths(shape) if Allocation(shape, bits, 0, True).bytes_stored <= CODE_SHARE * total]
    bare = Allocation(shape, max(fitting, default=_lengths(shape)[0]), 0, True)
    if bare.bytes_stored > total:
        bare = dataclasses.replace(bare, token_bias=False)
    if bare.bytes_stored > total:
        raise ConfigurationError(
            f"budget is {share:.2%} of the Softmax head's bytes, but {shape.num_classes:,} codewords of {bare.bits} "
            f"bits and the head for them take {bare.byte_share:.2%}; give that at least"
        )
    return _with_rows(bare, total)


def allocate_bits(shape: ModelShape, bits: int) -> Allocation:
    """The decision layer of a given codeword length, with the dense rows that a budget which comes to it would have.

    ConfigurationError if so many bits cannot tell the tokens apart, or weigh more than the Softmax head.
    """
    least = minimal_length(shape.num_classes)
    if bits < least:
        raise ConfigurationError(f"bits is {bits}, but {shape.num_classes:,} tokens need codewords of {least} at least")
    bare = Allocation(shape, bits, 0, True)
    if bare.bytes_stored > softmax_bytes(shape):
        raise ConfigurationError(
            f"bits is {bits}: codewords, head and bias take {bare.byte_share:.0%} of the Softmax head's bytes; give "
            "fewer"
        )
    return _with_rows(bare, min(int(bare.bytes_stored / CODE_SHARE), softmax_bytes(shape)))


def allocate_speed(shape: ModelShape, times: float) -> Allocation:
    """The largest decision layer with at most 1 / `times` of the Softmax head's multiply-adds per token.

    Of those that budgets come to, so that what was measured at budgets tells what to expect. ConfigurationError names
    the highest speed if even the shortest code has more.
    """
    if not times > 0:
        raise ConfigurationError(
            f"speed is {times!r}; give how many times fewer multiply-adds than Softmax's, as in 4x"
        )
    found = [allocate_bits(shape, bits) for bits in _lengths(shape) if _weighs_less(shape, bits)]
    fitting = [allocation for allocation in found if allocation.speed >= times]
    if not fitting:
        most = max((allocation.speed for allocation in found), default=0.0)
        raise ConfigurationError(
            f"speed is {times:g} times fewer multiply-adds than Softmax's, but the shortest code for "
            f"{shape.num_classes:,} tokens comes to {most:.1f} times; give no more than that"
        )
    return fitting[-1]


def _lengths(shape: ModelShape) -> range:
    """The codeword lengths to choose from."""
    return range(-(-minimal_length(shape.num_classes) // STEP) * STEP, LONGEST + 1, STEP)


def _weighs_less(shape: ModelShape, bits: int) -> bool:
    return Allocation(shape, bits, 0, True).bytes_stored <= softmax_bytes(shape)


def _with_rows(bare: Allocation, total: int) -> Allocation:
    """With as many dense rows as bring it to `total` bytes."""
    row = WEIGHT_BYTES * bare.shape.hidden_size + ID_BYTES
    return dataclasses.replace(bare, shortlist=min((total - bare.bytes_stored) // row, bare.shape.num_classes))
