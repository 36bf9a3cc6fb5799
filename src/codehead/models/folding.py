"""A linear head with a binary code is a Softmax head of low rank: write it out.

Many stock classes have no place for a bias per token, which `convert` adds by default. It goes into the LayerNorm
before the head exactly, or into the head's rows approximately.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from codehead.decoding.extras import ExtendedHead
from codehead.decoding.numerics import wide
from codehead.errors import ConfigurationError
from codehead.heads.feedforward import LowRankHead
from codehead.layer import Decision
from codehead.models import guards
from codehead.models.description import Description
from codehead.models.guards import all_or_nothing
from codehead.models.hidden import Statistics
from codehead.models.old_head import RIDGE
from codehead.models.probe import LogitScaling, probe
from codehead.models.surgery import Model, describe, uninstall

LINEAR = ("linear", "low_rank")
"""Heads that are one linear map of the hidden state."""


@all_or_nothing
def fold(model: Model, statistics: Statistics | None = None) -> Model:
    """Replace the decision layer by the Softmax head with the same posterior, in place.

    The token scores of a binary code are `½ C z` and a linear head gives `z = P h + b`, so the weight is
    `½ C P`, `(V, hidden)`, and the bias `½ C b`; the terms of extra bits, dense rows and a bias per token are added.
    The result is a stock model that every tool reads, without the saving in size.

    If the stock head has no bias, a LayerNorm before it absorbs the bias, exactly. Other classes (Llama, Qwen, Gemma)
    have no place for it. With `statistics` of hidden states, the rows approximate it as well as a linear head can:
    measure the model again. Without, the bias exists in memory only, and `save_pretrained` is refused.

    Raises ConfigurationError if the head is not linear or the code is ternary.
    """
    description = check_foldable(model)
    has_bias = description.stock["bias"]
    model.decision.check_integers()  # type: ignore[operator, union-attr]
    weight, bias = _dense(model)
    if bias is None and has_bias:
        bias = weight.new_zeros(len(weight))
    elif bias is not None and not has_bias:
        weight, bias = _without_bias(model, weight, bias, statistics)
    dtype = model.get_output_embeddings().weight.dtype  # type: ignore[operator]
    uninstall(model, _head(weight.to(dtype), None if bias is None else bias.to(dtype)))
    return model


def check_foldable(model: Any) -> Description:
    """The description of a coded model; ConfigurationError if it cannot be folded."""
    description = describe(model, "fold")
    if description.decision.head not in LINEAR:
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
    return description


def _without_bias(
    model: Any, weight: Tensor, bias: Tensor, statistics: Statistics | None
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias for a stock head without bias: a bias remains only if there is no place for it."""
    norm = norm_before_head(model)
    if norm is not None:
        return into_norm(norm, weight, bias), None
    return (weight, bias) if statistics is None else (into_rows(weight, bias, statistics), None)


@torch.no_grad()
def _dense(model: Any) -> tuple[Tensor, Tensor | None]:
    """Weight `(V, hidden)` and bias `(V,)`, in float32 or float64."""
    head, decision = model.get_output_embeddings(), model.decision
    has_rows, corrections = isinstance(head, ExtendedHead), decision.corrections
    matrix, offset = _linear_map(head.bits if has_rows else head)
    weight = _spread(matrix, decision)
    bias = None if offset is None else _spread(offset, decision)
    if has_rows:
        further, rows = wide(head.rows.weight).split([corrections.num_bits, corrections.num_rows])
        if corrections.refinement is not None:
            symbols = corrections.refinement.table.signs().to(weight)
            weight = weight.index_add(0, corrections.refinement.ids(), 0.5 * (symbols @ further))
        weight = weight.index_add(0, corrections.shortlist, rows)
    if corrections is not None and corrections.token_bias is not None:
        added = wide(corrections.token_bias) / LogitScaling.of(model).scale  # the model multiplies by the scale again
        bias = added + (0.0 if bias is None else bias)
    return weight, bias


def _linear_map(head: Any) -> tuple[Tensor, Tensor | None]:
    """Weight `(n, hidden)` and bias `(n,)` of a head that is linear."""
    if isinstance(head, LowRankHead):
        return wide(head.output_weight) @ wide(head.weight), head.output_bias
    return head.weight, head.bias


def _head(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    head = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
    head.weight = nn.Parameter(weight.contiguous())
    head.bias = None if bias is None else nn.Parameter(bias.contiguous())  # type: ignore[assignment]
    return head


def _spread(values: Tensor, decision: Decision) -> Tensor:
    """From one row per bit `(n, …)` to one per token `(V, …)`, in float32 or float64: ½ C · values."""
    exact = wide(values)
    return exact if decision.table.is_implicit else 0.5 * (decision.table.signs().to(exact.dtype) @ exact)


def norm_before_head(model: Any) -> nn.LayerNorm | None:
    """The LayerNorm, with weight and bias, whose output is the input of the output embedding; None without one."""
    outputs: list[tuple[nn.LayerNorm, Tensor]] = []
    norms = [part for part in model.modules() if isinstance(part, nn.LayerNorm) and part.bias is not None]
    hooks = [norm.register_forward_hook(lambda part, _, found: outputs.append((part, found))) for norm in norms]
    try:
        _, seen = probe(model, torch.zeros(1))
    finally:
        for hook in hooks:
            hook.remove()
    return next((norm for norm, found in outputs if _same_memory(found, seen)), None)


def _same_memory(first: Tensor, second: Tensor) -> bool:
    """Whether both share their memory, perhaps in different shapes."""
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


@torch.no_grad()
def into_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> Tensor:
    """Let a LayerNorm supply the `bias` `(V,)` of the head after it, in place; the head's new weight `(V, hidden)`.

    The output of a LayerNorm is γ x̂ + β with Σ x̂_i = 0, so one channel j is redundant: x̂_j = −Σ_{i≠j} x̂_i. With

        W'_i = γ_i W_i − γ_j W_j,    W'_j = bias + W β,    γ'_i = 1, β'_i = 0,    γ'_j = 0, β'_j = 1

    the logits are the same. j is the channel that matters least. Only the head may read the LayerNorm's output.
    """
    scale, shift = wide(norm.weight).to(weight), wide(norm.bias).to(weight)
    scaled = weight * scale
    channel = int(scaled.square().sum(0).argmin())
    changed = scaled - scaled[:, channel : channel + 1]
    changed[:, channel] = bias + weight @ shift
    one = torch.zeros_like(norm.weight).index_fill(0, torch.tensor([channel], device=norm.weight.device), 1.0)
    norm.weight, norm.bias = nn.Parameter(1 - one), nn.Parameter(one)
    return changed


def into_rows(weight: Tensor, bias: Tensor, statistics: Statistics) -> Tensor:
    """The weight `(V, hidden)` of a head that approximates one with a `bias` `(V,)`: weight + bias · vᵀ.

    v is the vector whose v · h is nearest to 1, in least squares over the hidden states h of the statistics.
    ConfigurationError if these hold counts alone.
    """
    if statistics.mean is None or statistics.covariance is None:
        raise ConfigurationError("these statistics hold counts alone; measure hidden states too (Statistics.of)")
    mean = statistics.mean
    square = statistics.covariance + torch.outer(mean, mean)
    square.diagonal().add_(RIDGE * square.diagonal().mean())
    return weight + torch.outer(bias, torch.linalg.solve(square, mean).to(weight))
