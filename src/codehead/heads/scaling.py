"""Scales of a head's outputs, folded into its last map: no new parameter, no new code path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codehead.decoding.extras.dense_rows import ShortlistHead
from codehead.errors import ConfigurationError

INTEGERS = (torch.int8, torch.uint8)
"""What the weights of a rounded head are kept as."""


def last_map(head: nn.Module) -> list[Tensor]:
    """The weight `(n, …)` and, if there is one, the bias `(n,)` that a row each makes the n bit logits.

    They are `output_weight` and `output_bias` of a head that has them, otherwise weight and bias of a linear map; of a
    head with a shortlist, those of its bits. Of a weight in int8 or int4, the scales of its rows `(n, 1)` stand for it.
    ConfigurationError if the head ends in something else, or its bias is in int8, with one scale for all bits.
    """
    bits: Any = head.bits if isinstance(head, ShortlistHead) else head
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
    """Multiply the bit logits of a head by `scales`, `(n,)`, or `(1,)` for all; a shortlist's rows stay.

    ConfigurationError as `last_map`.
    """
    for rows in last_map(head):
        precision = torch.promote_types(rows.dtype, torch.float32)
        factors = scales.to(rows.device, precision).reshape(-1, *[1] * (rows.ndim - 1))
        rows.copy_(rows * factors)


def _rows(module: Any, name: str) -> Tensor:
    """The tensor whose rows, multiplied, multiply those of a weight."""
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
