"""A linear head and a binary code are a Softmax head of low rank: write it out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from codehead.decoding.extras import ShortlistHead
from codehead.errors import ConfigurationError
from codehead.layer import Decision
from codehead.models import guards
from codehead.models.logit_scaling import LogitScaling
from codehead.models.surgery import Model, describe, uninstall
from codehead.models.undo import all_or_nothing


@all_or_nothing
def fold(model: Model) -> Model:
    """Replace the decision layer by the Softmax head with the same posterior, in place.

    The token scores of a binary code are `½ C z` and a linear head gives `z = P h + b`, so the weight is
    `½ C P`, `(V, hidden)`, and the bias `½ C b`; what a shortlist and a bias per token add is added to them.
    The result is a stock model that every tool reads, without the saving in size. Where the stock head has no bias, one
    per token is there in memory, but no checkpoint of that class has a place for it: `save_pretrained` is then refused.
    A ConfigurationError says why if the head is not linear or the code is ternary.
    """
    description = describe(model, "fold")
    if description.decision.head != "linear":
        raise ConfigurationError(
            f"cannot fold a head {description.decision.head!r}: it is not linear in the hidden state, and a Softmax "
            "head is; attach with head='linear' for a model that can be folded"
        )
    if description.codebook.ternary:
        raise ConfigurationError(
            f"cannot fold the ternary code {description.design!r}: the zeros of its codewords add Σ log(2 "
            "cosh(z/2)) to the scores, which is not linear in the hidden state; use a binary code"
        )
    guards.refuse_patched_forward(model, "fold")
    has_bias = description.stock["bias"]
    model.decision.check_integers()  # type: ignore[operator, union-attr]
    weight, bias = _dense(model)
    if bias is None and has_bias:
        bias = weight.new_zeros(len(weight))
    uninstall(model, _head(weight, bias))
    return model


@torch.no_grad()
def _dense(model: Any) -> tuple[Tensor, Tensor | None]:
    """Weight `(V, hidden)` and bias `(V,)`, in the dtype of the head."""
    head, decision = model.get_output_embeddings(), model.decision
    linear: Any = head.bits if isinstance(head, ShortlistHead) else head
    corrections = decision.corrections
    weight: Tensor = _spread(linear.weight, decision)
    bias: Tensor | None = None if linear.bias is None else _spread(linear.bias, decision)
    if isinstance(head, ShortlistHead):
        further, rows = head.rows.weight.float().split([corrections.num_bits, corrections.num_rows])
        if corrections.refinement is not None:
            symbols = corrections.refinement.table.signs()
            weight = weight.index_add(0, corrections.refinement.ids(), 0.5 * (symbols @ further))
    if isinstance(head, ShortlistHead):
        weight = weight.index_add(0, corrections.shortlist, rows)
    if corrections is not None and corrections.token_bias is not None:
        added = corrections.token_bias.float() / LogitScaling.of(model).scale  # of it the model makes the bias again
        bias = added + (0.0 if bias is None else bias)
    dtype = linear.weight.dtype
    return weight.to(dtype).contiguous(), None if bias is None else bias.to(dtype).contiguous()


def _head(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    head = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, device="meta")
    head.weight = nn.Parameter(weight)
    if bias is not None:
        head.bias = nn.Parameter(bias)
    return head


def _spread(values: Tensor, decision: Decision) -> Tensor:
    """From one row per bit `(n, …)` to one per token `(V, …)`, in float32: ½ C · values."""
    wide = values.float()
    return wide if decision.table.is_implicit else 0.5 * (decision.table.signs() @ wide)
