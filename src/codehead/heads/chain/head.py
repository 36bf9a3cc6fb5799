"""The chain head: features for blocks of bits, whose later blocks also see the bits before them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.errors import ConfigurationError
from codehead.heads.base import HEADS, require_positive
from codehead.heads.mtl import ACTIVATIONS


def block_starts(num_bits: int, block: int) -> list[int]:
    """The first bit of every block of `block` bits; if they do not divide n, the first block is the short one."""
    return [0, *range((num_bits - 1) % block + 1, num_bits, block)]


@HEADS.register("chain")
class ChainHead(nn.Module):
    """Hidden states `(…, hidden)` → features `(…, blocks · width)` for a `Chain` in the decision layer.

    One linear map, without bias: `hidden · blocks · width` parameters. The n bits are cut into blocks of `block` bits,
    the first of which takes the remainder. What a feature means is up to `codehead.heads.chain.conditioning.Chain`,
    which adds what the earlier bits say, applies the `activation` and has the parameters of the bits.

    `weight` is three-dimensional, `(blocks, width, hidden)`, so that it is never taken for a Softmax matrix.
    """

    def __init__(
        self,
        hidden_size: int,
        num_bits: int,
        width: int | None = None,
        block: int = 1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if width is None or width == 0:
            raise ConfigurationError(
                f"head 'chain' needs width ≥ 1, the features of each block of bits; got width={width!r}. For a head "
                "without hidden layers choose head='linear'"
            )
        ACTIVATIONS.get(activation)
        self.hidden_size = require_positive("hidden_size", hidden_size)
        self.num_bits = require_positive("num_bits", num_bits)
        self.width = require_positive("width", width)
        self.block = min(require_positive("block", block), num_bits)
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(len(block_starts(num_bits, self.block)), width, hidden_size))
        self.reset_parameters()

    @property
    def out_features(self) -> int:
        """The features: blocks · width."""
        return self.weight.shape[0] * self.width

    @property
    def conditioning(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters of the `Chain` that goes with this head."""
        rows = sum(block_starts(self.num_bits, self.block))
        found: dict[str, tuple[int, ...]] = {"weight": (self.num_bits, self.width), "bias": (self.num_bits,)}
        return found | {"context": (rows, self.width)} if rows else found

    def reset_parameters(self) -> None:
        """Uniform in ±1/√hidden, as `nn.Linear` starts."""
        nn.init.uniform_(self.weight, -1 / math.sqrt(self.hidden_size), 1 / math.sqrt(self.hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, hidden)` → `(…, blocks · width)`."""
        return F.linear(hidden, self.weight.flatten(0, 1))

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_bits={self.num_bits}, width={self.width}, block={self.block}"
