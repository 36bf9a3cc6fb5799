"""Rounding of a linear map in view of what it multiplies, so that its outputs change least."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 0.01
"""Added to the diagonal of the second moments, relative to its mean, as GPTQ does."""
BLOCK = 128
"""Columns whose errors reach the columns after them together."""

Rounding = Callable[[Tensor], Tensor]


def error_corrected(weight: Tensor, moments: Tensor, group: int, rounding: Callable[[Tensor], Rounding]) -> Tensor:
    """A weight `(rows, hidden)` rounded column by column, the error of each spread over those still to be rounded.

    `moments` `(hidden, hidden)` are the second moments of the hidden states (E. Frantar et al. 2022, "GPTQ",
    https://arxiv.org/abs/2210.17323). `rounding` makes of the next `group` columns, as the errors so far have left
    them, how a column of them is rounded. float32, on the CPU.
    """
    left, spread, hidden = weight.to("cpu", torch.float64, copy=True), _spread(moments), weight.shape[1]
    for first in range(0, hidden, group):
        last = min(first + group, hidden)
        nearest = rounding(left[:, first:last].float())
        for start in range(first, last, BLOCK):
            block = slice(start, min(start + BLOCK, last))
            errors = _round_block(left[:, block], spread[block, block], nearest)
            left[:, block.stop :] -= errors @ spread[block, block.stop :]
    return left.float()


def _spread(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the moments: how errors reach later columns."""
    damped = moments.to("cpu", torch.float64, copy=True)
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    return torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)


def _round_block(left: Tensor, spread: Tensor, nearest: Rounding) -> Tensor:
    """Round some columns in place, each in view of the errors before it; their errors `(rows, columns)`."""
    errors = torch.empty_like(left)
    for column in range(left.shape[1]):
        rounded = nearest(left[:, column : column + 1].float()).double()
        errors[:, column : column + 1] = (left[:, column : column + 1] - rounded) / spread[column, column]
        left[:, column + 1 :] -= errors[:, column : column + 1] * spread[column, column + 1 :]
        left[:, column : column + 1] = rounded
    return errors
