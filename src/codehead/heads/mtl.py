"""The MTL-ECOC head (n, d): a hidden layer of width d before every node, private or shared by a group of nodes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.errors import ConfigurationError
from codehead.heads.base import HEADS, require_positive
from codehead.registry import Registry

ACTIVATIONS: Registry[Callable[[Tensor], Tensor]] = Registry("activation")
ACTIVATIONS.register("relu")(F.relu)
ACTIVATIONS.register("gelu")(F.gelu)
ACTIVATIONS.register("silu")(F.silu)
ACTIVATIONS.register("tanh")(torch.tanh)


@HEADS.register("mtl")
class MTLHead(nn.Module):
    """Hidden states `(…, hidden)` → bit logits `(…, num_bits)` by multi-task nodes.

    Node i computes `w_i · act(W_i h)` with its own `W_i` of shape `(width, hidden)`; no biases unless asked for,
    so there are `num_bits · (hidden · width + width)` parameters. With `groups`, the nodes are cut into so many blocks
    of neighbours, as equal as can be, the larger ones first, and those of a block share their hidden layer:
    `groups · hidden · width + num_bits · width` parameters; one group shares everything.

    `weight` is three-dimensional, `(groups, width, hidden)`, on purpose: a checkpoint read without codehead can never
    take it for the `(vocabulary, hidden)` matrix of a Softmax layer.
    """

    def __init__(
        self,
        hidden_size: int,
        num_bits: int,
        width: int | None = None,
        activation: str = "relu",
        bias: bool = False,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        if width is None or width == 0:
            raise ConfigurationError(
                f"head 'mtl' needs width ≥ 1, the size of each node's hidden layer; got width={width!r}. "
                "For a head without hidden layers choose head='linear'"
            )
        self.hidden_size = require_positive("hidden_size", hidden_size)
        self.num_bits = require_positive("num_bits", num_bits)
        self.width = require_positive("width", width)
        self.groups = num_bits if groups is None else require_positive("groups", groups)
        if self.groups > num_bits:
            raise ConfigurationError(
                f"groups={groups} is more than the {num_bits} bits, and every group needs a bit; choose groups from 1 "
                f"to {num_bits}"
            )
        self.activation = ACTIVATIONS.get(activation)
        self.weight = nn.Parameter(torch.empty(self.groups, width, hidden_size))
        self.output_weight = nn.Parameter(torch.empty(num_bits, width))
        self.bias = nn.Parameter(torch.empty(self.groups, width)) if bias else None
        self.output_bias = nn.Parameter(torch.empty(num_bits)) if bias else None
        self.reset_parameters()

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
        layers = self.activation(F.linear(hidden, self.weight.flatten(0, 1), bias))
        if self.groups == self.num_bits:  # one product, where the loop below would be over single nodes
            nodes = layers.unflatten(-1, (self.num_bits, self.width))
            bits = torch.einsum("...nd,nd->...n", nodes, self.output_weight)
        else:
            rows = self.output_weight.split(self._sizes())
            parts = [F.linear(layer, some) for layer, some in zip(layers.split(self.width, -1), rows, strict=True)]
            bits = torch.cat(parts, dim=-1)
        return bits if self.output_bias is None else bits + self.output_bias

    def _sizes(self) -> list[int]:
        """The nodes of every group."""
        small, larger = divmod(self.num_bits, self.groups)
        return [small + 1] * larger + [small] * (self.groups - larger)

    def extra_repr(self) -> str:
        groups = "" if self.groups == self.num_bits else f", groups={self.groups}"
        return f"hidden_size={self.hidden_size}, num_bits={self.num_bits}, width={self.width}{groups}"
