"""The registry of heads, and the heads of one or two matrix products: linear, low-rank, MTL."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from codehead.codes.design import whole_number
from codehead.decoding.extras import ExtendedHead
from codehead.errors import ConfigurationError
from codehead.registry import Registry

HEADS: Registry[type[nn.Module]] = Registry("head")


def gives_log_probabilities(head: nn.Module | type[nn.Module]) -> bool:
    """Whether the outputs of a head are log-probabilities of tokens, as its attribute `log_probabilities` says.

    Otherwise they are bit logits, or the features of a chain.
    """
    return bool(getattr(head, "log_probabilities", False))


def start_values(weights: Iterable[Tensor], biases: Iterable[Tensor | None] = ()) -> None:
    """Weights `(…, fan_in)` uniform in ±1/√fan_in, as `nn.Linear` starts; biases at zero."""
    for weight in weights:
        limit = 1 / math.sqrt(weight.shape[-1])
        nn.init.uniform_(weight, -limit, limit)
    for bias in biases:
        if bias is not None:
            nn.init.zeros_(bias)


def needed(head: str, option: str, value: int | None, what: str) -> int:
    """An option that a head cannot do without; ConfigurationError says `what` it is if it is missing or impossible."""
    if not value:
        raise ConfigurationError(
            f"head {head!r} needs {option} ≥ 1, {what}; got {option}={value!r}. For a head that is one linear map "
            "choose head='linear'"
        )
    return whole_number(option, value, 1)


@HEADS.register("linear")
class LinearHead(nn.Linear):
    """Hidden states `(…, hidden)` → bit logits `(…, num_bits)`.

    With `bias=False` (the default) it has `hidden · num_bits` parameters. With the one_vs_all code it is the
    Softmax layer itself.
    """

    def __init__(self, hidden_size: int, num_bits: int, bias: bool = False) -> None:
        super().__init__(whole_number("hidden_size", hidden_size, 1), whole_number("num_bits", num_bits, 1), bool(bias))


@HEADS.register("low_rank")
class LowRankHead(nn.Module):
    """Hidden states `(…, hidden)` → `rank` numbers → outputs `(…, num_bits)`, both maps linear.

    Without a bias it has `rank · (hidden + num_bits)` parameters. With the one_vs_all code it is a Softmax layer of low
    rank. `weight` is the first map, `(rank, hidden)`.
    """

    def __init__(self, hidden_size: int, num_bits: int, rank: int | None = None, bias: bool = False) -> None:
        super().__init__()
        hidden_size = whole_number("hidden_size", hidden_size, 1)
        self.num_bits = whole_number("num_bits", num_bits, 1)
        self.rank = needed("low_rank", "rank", rank, "the width of its bottleneck")
        if self.rank == num_bits:
            raise ConfigurationError(
                f"rank={rank} is the number of outputs, so the head could be one linear map; choose head='linear'"
            )
        self.weight = nn.Parameter(torch.empty(self.rank, hidden_size))
        self.output_weight = nn.Parameter(torch.empty(num_bits, self.rank))
        self.output_bias = nn.Parameter(torch.empty(num_bits)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `start_values`."""
        start_values([self.weight, self.output_weight], [self.output_bias])

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, hidden)` → `(…, num_bits)`."""
        return F.linear(F.linear(hidden, self.weight), self.output_weight, self.output_bias)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, num_bits={self.num_bits}"


ACTIVATIONS: Registry[Callable[[Tensor], Tensor]] = Registry("activation")
ACTIVATIONS.register("relu")(F.relu)
ACTIVATIONS.register("gelu")(F.gelu)
ACTIVATIONS.register("silu")(F.silu)
ACTIVATIONS.register("tanh")(torch.tanh)


@HEADS.register("mtl")
class MTLHead(nn.Module):
    """Hidden states `(…, hidden)` → bit logits `(…, num_bits)` by multi-task nodes.

    Node i computes `w_i · act(W_i h)` with its own `W_i` of shape `(width, hidden)`; without biases (the default) there
    are `num_bits · (hidden · width + width)` parameters. `groups` divides the nodes into that many blocks of
    neighbours, as equal as possible, larger ones first; the nodes of a block share their hidden layer:
    `groups · hidden · width + num_bits · width` parameters. With one group, all nodes share it.

    `weight` is three-dimensional, `(groups, width, hidden)`, on purpose: if a checkpoint is read without codehead,
    it can never be mistaken for the `(vocabulary, hidden)` matrix of a Softmax layer.
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
        self.hidden_size = whole_number("hidden_size", hidden_size, 1)
        self.num_bits = whole_number("num_bits", num_bits, 1)
        self.width = needed("mtl", "width", width, "the size of each node's hidden layer")
        self.groups = num_bits if groups is None else whole_number("groups", groups, 1)
        if self.groups > num_bits:
            raise ConfigurationError(
                f"groups={groups} is more than the {num_bits} bits, and every group needs a bit; choose groups from 1 "
                f"to {num_bits}"
            )
        self.activation = ACTIVATIONS.get(activation)
        self.weight = nn.Parameter(torch.empty(self.groups, self.width, hidden_size))
        self.output_weight = nn.Parameter(torch.empty(num_bits, self.width))
        self.bias = nn.Parameter(torch.empty(self.groups, self.width)) if bias else None
        self.output_bias = nn.Parameter(torch.empty(num_bits)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `start_values`."""
        start_values([self.weight, self.output_weight], [self.bias, self.output_bias])

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, hidden)` → `(…, num_bits)`."""
        bias = None if self.bias is None else self.bias.flatten()
        layers = self.activation(F.linear(hidden, self.weight.flatten(0, 1), bias))
        if self.groups == self.num_bits:  # one product instead of a loop over single nodes
            nodes = layers.unflatten(-1, (self.num_bits, self.width))
            bits = torch.einsum("...nd,nd->...n", nodes, self.output_weight)
        else:
            rows = self.output_weight.tensor_split(self.groups)
            parts = [F.linear(layer, some) for layer, some in zip(layers.split(self.width, -1), rows, strict=True)]
            bits = torch.cat(parts, dim=-1)
        return bits if self.output_bias is None else bits + self.output_bias

    def extra_repr(self) -> str:
        groups = "" if self.groups == self.num_bits else f", groups={self.groups}"
        return f"hidden_size={self.hidden_size}, num_bits={self.num_bits}, width={self.width}{groups}"


# Scales of a head's outputs, folded into its last map: no new parameter, no new code path.


INTEGERS = (torch.int8, torch.uint8)
"""The dtypes of the weights of a rounded head."""


def last_map(head: nn.Module) -> list[Tensor]:
    """The weight `(n, …)` and, if there is one, the bias `(n,)` of the n bit logits, one row each.

    They are `output_weight` and `output_bias` of a head that has them, otherwise weight and bias of a linear map; for a
    head with dense rows, those of its bits. A weight in int8 or int4 is represented by the scales of its rows `(n, 1)`.
    ConfigurationError if the head ends in something else, or its bias is in int8, with one scale for all bits.
    """
    bits: Any = head.bits if isinstance(head, ExtendedHead) else head
    prefix = "output_" if hasattr(bits, "output_weight") else ""
    if not prefix and not isinstance(bits, nn.Linear):
        raise ConfigurationError(
            f"the outputs of a {type(bits).__name__} cannot be scaled: it does not end in one linear map with a row "
            "per bit; choose head='linear', 'mtl' or 'low_rank', or call that map output_weight, output_bias"
        )
    names = [prefix + name for name in ("weight", "bias")]
    return [_rows(bits, name) for name in names if getattr(bits, name, None) is not None]


@torch.no_grad()
def scale_outputs(head: nn.Module, scales: Tensor) -> None:
    """Multiply the bit logits of a head by `scales`, `(n,)`, or `(1,)` for all; dense rows are unchanged.

    ConfigurationError as for `last_map`.
    """
    for rows in last_map(head):
        precision = torch.promote_types(rows.dtype, torch.float32)
        factors = scales.to(rows.device, precision).reshape(-1, *[1] * (rows.ndim - 1))
        rows.copy_(rows * factors)


def _rows(module: Any, name: str) -> Tensor:
    """The tensor whose rows to multiply in order to scale the rows of a weight."""
    if not parametrize.is_parametrized(module, name):
        rows: Tensor = getattr(module, name)
        return rows
    originals = module.parametrizations[name]
    if originals.original0.dtype not in INTEGERS or name.endswith("bias"):
        raise ConfigurationError(
            f"{name} of this {type(module).__name__} is made from other tensors, which have no scale per bit; scale "
            "the outputs before that"
        )
    scales: Tensor = originals.original1
    return scales
