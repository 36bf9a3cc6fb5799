"""A budget of bytes → the decision layer that makes most of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from codehead.codes.design import minimal_length
from codehead.errors import ConfigurationError
from codehead.evaluation.size import WEIGHT_BYTES, ModelShape

CODE_SHARE = 0.8
"""Of the budget: codewords, the head that predicts them and a bias per token; dense rows get what is left."""
STEP = 8
"""Codeword lengths are multiples of this: a packed row takes whole bytes."""
ID_BYTES = 4
"""Of a token in the shortlist."""
LONGEST = 1024
"""Bits: longer codes cost more time than they bring accuracy."""


@dataclass(frozen=True)
class Allocation:
    """Codeword length, dense rows and bias per token that fit a budget."""

    bits: int
    shortlist: int
    token_bias: bool
    bytes_stored: int
    """With weights in bf16."""

    def decision(self) -> dict[str, Any]:
        """The keywords of `attach`, but for what it learns from text."""
        return {
            "code": "itq",
            "bits": self.bits,
            "loss": "codeword",
            "shortlist": self.shortlist,
            "token_bias": self.token_bias,
        }


def allocate(shape: ModelShape, share: float) -> Allocation:
    """The code, shortlist and bias for `share` (0 to 1) of the Softmax head's bytes in bf16.

    The longest code that leaves a fifth of the budget to dense rows; below that, the shortest code there is, without
    a bias if need be. ConfigurationError names the least share if even that is too much.
    """
    if not 0 < share <= 1:
        raise ConfigurationError(f"budget is {share!r}; give a share of the Softmax head's bytes, such as 5%")
    total = int(share * WEIGHT_BYTES * shape.num_classes * shape.hidden_size)
    least = -(-minimal_length(shape.num_classes) // STEP) * STEP
    fitting = [bits for bits in range(least, LONGEST + 1, STEP) if _bytes(shape, bits, True) <= CODE_SHARE * total]
    bits, token_bias = max(fitting, default=least), True
    if _bytes(shape, bits, token_bias) > total:
        token_bias = False
    left = total - _bytes(shape, bits, token_bias)
    if left < 0:
        needed = _bytes(shape, bits, token_bias) / (WEIGHT_BYTES * shape.num_classes * shape.hidden_size)
        raise ConfigurationError(
            f"budget is {share:.2%} of the Softmax head's bytes, but {shape.num_classes:,} codewords of {bits} bits "
            f"and the head for them take {needed:.2%}; give that at least"
        )
    shortlist = min(left // (WEIGHT_BYTES * shape.hidden_size + ID_BYTES), shape.num_classes)
    stored = _bytes(shape, bits, token_bias) + shortlist * (WEIGHT_BYTES * shape.hidden_size + ID_BYTES)
    return Allocation(bits, shortlist, token_bias, stored)


def _bytes(shape: ModelShape, bits: int, token_bias: bool) -> int:
    """Packed codewords, the linear head in bf16, the bias in bf16."""
    codewords = shape.num_classes * bits // 8
    weights = bits * shape.hidden_size + (shape.num_classes if token_bias else 0)
    return codewords + WEIGHT_BYTES * weights
