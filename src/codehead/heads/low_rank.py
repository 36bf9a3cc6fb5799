"""A head of low rank: the usual way to make a Softmax layer smaller, and a bottleneck for the bits of a long code."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.errors import ConfigurationError
from codehead.heads.base import HEADS, require_positive


@HEADS.register("low_rank")
class LowRankHead(nn.Module):
    """Hidden states `(…, hidden)` → `rank` numbers → outputs `(…, num_bits)`, both maps linear.

    Without a bias it has `rank · (hidden + num_bits)` parameters. With the one_vs_all code it is a Softmax layer of low
    rank. `weight` is the first map, `(rank, hidden)`.
    """

    def __init__(self, hidden_size: int, num_bits: int, rank: int | None = None, bias: bool = False) -> None:
        super().__init__()
        hidden_size, self.num_bits = (
            require_positive("hidden_size", hidden_size),
            require_positive("num_bits", num_bits),
        )
        if rank is None:
            raise ConfigurationError("head 'low_rank' needs rank ≥ 1, the width of its bottleneck; got rank=None")
        self.rank = require_positive("rank", rank)
        if self.rank == num_bits:
            raise ConfigurationError(
                f"rank={rank} is the number of outputs, so the head could be one linear map; choose head='linear'"
            )
        self.weight = nn.Parameter(torch.empty(rank, hidden_size))
        self.output_weight = nn.Parameter(torch.empty(num_bits, rank))
        self.output_bias = nn.Parameter(torch.empty(num_bits)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1/√fan_in, as `nn.Linear` starts; the bias at zero."""
        for weight in (self.weight, self.output_weight):
            nn.init.uniform_(weight, -1 / math.sqrt(weight.shape[1]), 1 / math.sqrt(weight.shape[1]))
        if self.output_bias is not None:
            nn.init.zeros_(self.output_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, hidden)` → `(…, num_bits)`."""
        return F.linear(F.linear(hidden, self.weight), self.output_weight, self.output_bias)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, num_bits={self.num_bits}"
