"""A linear head and a binary code are a Softmax head of low rank: write it out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from codehead.errors import ConfigurationError
from codehead.models.surgery import Model, describe, uninstall


def fold(model: Model) -> Model:
    """Replace the decision layer by the Softmax head with the same posterior, in place.

    The token scores of a binary code are `½ C z` and a linear head gives `z = P h + b`, so the weight is
    `½ C P`, `(V, hidden)`, and the bias `½ C b`. The result is a stock model that every tool reads, without
    the saving in size. A ConfigurationError says why if the head is not linear or the code is ternary.
    """
    description = describe(model, "fold")
    if description.head != "linear":
        raise ConfigurationError(
            f"cannot fold a head {description.head!r}: it is not linear in the hidden state, and a Softmax "
            "head is; attach with head='linear' for a model that can be folded"
        )
    if description.ternary:
        raise ConfigurationError(
            f"cannot fold the ternary code {description.design!r}: the zeros of its codewords add Σ log(2 "
            "cosh(z/2)) to the scores, which is not linear in the hidden state; use a binary code"
        )
    uninstall(model, _dense_head(model))
    return model


@torch.no_grad()
def _dense_head(model: Any) -> nn.Linear:
    head, table = model.get_output_embeddings(), model.decision.table
    rows = [head.weight.float()] + ([] if head.bias is None else [head.bias.float().unsqueeze(1)])
    weight = torch.cat(rows, dim=1)  # (n, hidden) or (n, hidden + 1)
    dense = weight if table.is_implicit else 0.5 * (table.signs() @ weight)
    hidden = head.weight.shape[1]
    folded = nn.Linear(hidden, table.num_classes, bias=head.bias is not None, device="meta")
    folded.weight = nn.Parameter(dense[:, :hidden].to(head.weight.dtype).contiguous())
    if head.bias is not None:
        folded.bias = nn.Parameter(dense[:, hidden].to(head.weight.dtype).contiguous())
    return folded
