"""A head of towers: hidden layers that many bits share, or one for every group of bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.errors import ConfigurationError
from codehead.heads.base import HEADS, require_positive
from codehead.heads.mtl import ACTIVATIONS


@HEADS.register("tower")
class TowerHead(nn.Module):
    """Hidden states `(…, hidden)` → bit logits `(…, num_bits)` through hidden layers that bits share.

    The n bits are cut into `groups` blocks of neighbours, as equal as can be, the larger ones first. Tower g computes
    `act(W_g h)` with `W_g` of shape `(width, hidden)`, and every bit of its block is a linear map of that. Without
    biases there are `groups · hidden · width + num_bits · width` parameters: one group shares everything, and with a
    group for every bit this is the MTL head, down to the names and shapes of the parameters.

    `weight` is three-dimensional, `(groups, width, hidden)`, so that it is never taken for a Softmax matrix.
    """

    def __init__(
        self,
        hidden_size: int,
        num_bits: int,
        width: int | None = None,
        groups: int = 1,
        activation: str = "relu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        if width is None or width == 0:
            raise ConfigurationError(
                f"head 'tower' needs width ≥ 1, the size of each tower's hidden layer; got width={width!r}. "
                "For a head without hidden layers choose head='linear'"
            )
        self.hidden_size = require_positive("hidden_size", hidden_size)
        self.num_bits = require_positive("num_bits", num_bits)
        self.width = require_positive("width", width)
        self.groups = require_positive("groups", groups)
        if groups > num_bits:
            raise ConfigurationError(
                f"groups={groups} is more than the {num_bits} bits, and every tower needs a bit; choose groups from 1 "
                f"to {num_bits}"
            )
        self.activation = ACTIVATIONS.get(activation)
        self.weight = nn.Parameter(torch.empty(groups, width, hidden_size))
        self.output_weight = nn.Parameter(torch.empty(num_bits, width))
        self.bias = nn.Parameter(torch.empty(groups, width)) if bias else None
        self.output_bias = nn.Parameter(torch.empty(num_bits)) if bias else None
        self.reset_parameters()

    @property
    def sizes(self) -> list[int]:
        """The bits of every group."""
        small, larger = divmod(self.num_bits, self.groups)
        return [small + 1] * larger + [small] * (self.groups - larger)

    def reset_parameters(self) -> None:
        """Uniform in ±1/√fan_in, as `nn.Linear` starts; biases at zero."""
        nn.init.uniform_(self.weight, -1 / math.sqrt(self.hidden_size), 1 / math.sqrt(self.hidden_size))
        nn.init.uniform_(self.output_weight, -1 / math.sqrt(self.width), 1 / math.sqrt(self.width))
        if self.bias is not None and self.output_bias is not None:
            nn.init.zeros_(self.bias)
            nn.init.zeros_(self.output_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, hidden)` → `(…, num_bits)`."""
        bias = None if self.bias is None else self.bias.flatten()
        towers = self.activation(F.linear(hidden, self.weight.flatten(0, 1), bias)).split(self.width, dim=-1)
        rows = self.output_weight.split(self.sizes)
        bits = torch.cat([F.linear(tower, some) for tower, some in zip(towers, rows, strict=True)], dim=-1)
        return bits if self.output_bias is None else bits + self.output_bias

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_bits={self.num_bits}, width={self.width}, groups={self.groups}"
