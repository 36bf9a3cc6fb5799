"""Rounding of a linear map in view of what it multiplies, so that its outputs change least."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 0.01
"""Added to the diagonal of the second moments, relative to its mean, as GPTQ does."""
BLOCK = 128
"""Columns whose errors reach the columns after them together."""
ROWS = 2**12
"""Rows that are rounded at a time: what that takes is a multiple of their bytes."""

Rounding = Callable[[Tensor], Tensor]


def error_corrected(weight: Tensor, spread: Tensor, group: int, rounding: Callable[[Tensor], Rounding]) -> Tensor:
    """A weight `(rows, hidden)` rounded column by column, the error of each spread over those still to be rounded.

    `spread` is that of `error_spread` (E. Frantar et al. 2022, "GPTQ", https://arxiv.org/abs/2210.17323). `rounding`
    makes of the next `group` columns, as the errors so far have left them, how a column of them is rounded. float32, on
    the CPU. A row does not depend on the others: of a large weight give some thousand at a time.
    """
    left, hidden = weight.to("cpu", torch.float64, copy=True), weight.shape[1]
    for first in range(0, hidden, group):
        last = min(first + group, hidden)
        nearest = rounding(left[:, first:last].float())
        for start in range(first, last, BLOCK):
            block = slice(start, min(start + BLOCK, last))
            errors = _round_block(left[:, block], spread[block, block], nearest)
            left[:, block.stop :] -= errors @ spread[block, block.stop :]
    return left.float()


def error_spread(moments: Tensor) -> Tensor:
    """How errors reach later columns: the upper Cholesky factor of the inverse of the moments `(hidden, hidden)`.

    They are the second moments of the hidden states. float64, on the CPU.
    """
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
