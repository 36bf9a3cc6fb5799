"""A bias per token for a Softmax head that has none: in the LayerNorm before it, or nearly so in its rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from codehead.decoding.numerics import wide
from codehead.errors import ConfigurationError
from codehead.models.hidden import Statistics
from codehead.models.least_squares import RIDGE
from codehead.models.probe import probe


def norm_before_head(model: Any) -> nn.LayerNorm | None:
    """The LayerNorm, with weight and bias, whose output is all that the output embedding is given; None without one."""
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
    """Whether one is the other, at most in another shape."""
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


@torch.no_grad()
def into_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> Tensor:
    """Let a LayerNorm bring the `bias` `(V,)` of the head after it, in place; the new weight of the head `(V, hidden)`.

    What a LayerNorm gives is γ x̂ + β with Σ x̂_i = 0, so one channel j is redundant: x̂_j = −Σ_{i≠j} x̂_i. With

        W'_i = γ_i W_i − γ_j W_j,    W'_j = bias + W β,    γ'_i = 1, β'_i = 0,    γ'_j = 0, β'_j = 1

    the logits are the same. j is the channel that matters least. Only the head may read what the LayerNorm gives.
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
    """The weight `(V, hidden)` of a head that gives nearly what it gives with a `bias` `(V,)`: weight + bias · vᵀ.

    v is where v · h comes nearest to 1, in least squares over the hidden states h of the statistics. ConfigurationError
    if these hold counts alone.
    """
    if statistics.mean is None or statistics.covariance is None:
        raise ConfigurationError("these statistics hold counts alone; measure hidden states too (Statistics.of)")
    mean = statistics.mean
    square = statistics.covariance + torch.outer(mean, mean)
    square.diagonal().add_(RIDGE * square.diagonal().mean())
    return weight + torch.outer(bias, torch.linalg.solve(square, mean).to(weight))
