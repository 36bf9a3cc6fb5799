"""Least squares over the rows of a Softmax head, some of them at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from codehead.models.hidden import PIECE, Statistics

LISTED = 1e-6
"""The weight of a token that has a row of its own: enough to tell it from the others if all have."""
RIDGE = 1e-6
"""Relative weight of |P|², so that columns that depend on each other are no obstacle."""


def least_squares(codewords: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The P `(n, hidden)` and m `(hidden,)` that minimise Σ_v weights_v · |codewords_v P + m − rows_v|², in float64."""
    size = codewords.shape[1] + 1
    square = RIDGE * weights.sum() * torch.eye(size).to(weights)
    target = torch.zeros(size, rows.shape[1]).to(weights)
    for w, some, wanted in pieces(weights, codewords, rows):
        inputs = torch.cat([some.double(), torch.ones(len(some), 1).to(weights)], dim=1)
        square += inputs.T @ (w.unsqueeze(1) * inputs)
        target += inputs.T @ (w.unsqueeze(1) * wanted.double())
    solution = torch.linalg.solve(square, target)
    return solution[:-1], solution[-1]


def token_weights(old: nn.Linear, statistics: Statistics | None, listed: Tensor | None = None) -> Tensor:
    """How much every token counts, float64 `(V,)`, on the device of the head: one more than it occurs.

    Those `listed` `(K,)`, which have rows of their own, count next to nothing.
    """
    counts = torch.zeros(len(old.weight)) if statistics is None else statistics.counts
    weights = (counts + 1).to(old.weight.device, torch.float64)
    return weights if listed is None else weights.index_fill(0, listed.to(weights.device, torch.int64), LISTED)


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching rows of tensors `(V, …)`, some at a time: in float64 a whole head would take gigabytes."""
    return zip(*(tensor.split(PIECE) for tensor in tensors), strict=True)
