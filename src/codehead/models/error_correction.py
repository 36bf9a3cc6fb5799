"""Rounding of a linear map in view of what it multiplies, so that its outputs change least."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 0.01
"""Added to the diagonal of the second moments, relative to its mean, as GPTQ does."""

Rounding = Callable[[Tensor], Tensor]


def error_corrected(weight: Tensor, moments: Tensor, group: int, rounding: Callable[[Tensor], Rounding]) -> Tensor:
    """A weight `(rows, hidden)` rounded column by column, the error of each spread over those still to be rounded.

    `moments` `(hidden, hidden)` are the second moments of the hidden states (E. Frantar et al. 2022, "GPTQ",
    https://arxiv.org/abs/2210.17323). `rounding` makes of the next `group` columns, as the errors so far have left
    them, how a column of them is rounded. float32, on the CPU.
    """
    left, result = weight.double().cpu().clone(), torch.empty(weight.shape, dtype=torch.float64)
    damped = moments.double() + DAMPING * moments.double().diagonal().mean() * torch.eye(len(moments)).double()
    spread = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    for column in range(weight.shape[1]):
        if column % group == 0:
            nearest = rounding(left[:, column : column + group].float())
        rounded = nearest(left[:, column : column + 1].float()).double()
        error = (left[:, column : column + 1] - rounded) / spread[column, column]
        left[:, column:] -= error * spread[column, column:]
        result[:, column : column + 1] = rounded
    return result.float()
