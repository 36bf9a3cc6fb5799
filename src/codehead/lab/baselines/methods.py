"""What a practitioner would otherwise do to a Softmax head: quantise it, or keep only the frequent tokens.

Every baseline is simulated: it returns the dense weight that its stored form stands for, and the bytes of that form.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from codehead.errors import ConfigurationError
from codehead.models.error_correction import ROWS, Rounding, error_corrected, error_spread

SCALE_BYTES = 2  # bf16


class Compressed(NamedTuple):
    """A compressed Softmax head."""

    weight: Tensor
    """`(V, hidden)`, float32; rows that were dropped are NaN."""
    num_bytes: int
    """Of the stored form: integers, and scale and offset of every group in bf16; or rows in bf16."""


def quantised(weight: Tensor, bits: int, group: int, moments: Tensor | None = None) -> Compressed:
    """A head `(V, hidden)` in integers of `bits`, with a scale and an offset per `group` neighbours of a row.

    Rounds to the nearest integer. With the second moments `(hidden, hidden)` of the hidden states the error of each
    column is spread over the columns that are still to be rounded, so that scores change least (`error_corrected`).

    Raises ConfigurationError if the groups do not divide a row or bits are not 2 … 8.
    """
    rows, hidden = weight.shape
    if not 2 <= bits <= 8:
        raise ConfigurationError(f"bits is {bits}; a quantised head has 2 to 8 bits per weight")
    if group < 1 or hidden % group:
        raise ConfigurationError(f"group is {group}, which does not divide the hidden size {hidden}")
    num_bytes = rows * hidden * bits // 8 + 2 * SCALE_BYTES * rows * (hidden // group)
    if moments is None:
        grouped = weight.float().unflatten(1, (-1, group))
        return Compressed(_rounding(grouped, bits)(grouped).flatten(1), num_bytes)
    reach, how = error_spread(moments), partial(_rounding, bits=bits)
    return Compressed(torch.cat([error_corrected(some, reach, group, how) for some in weight.split(ROWS)]), num_bytes)


def trimmed(weight: Tensor, keep: Tensor) -> Compressed:
    """The rows `keep` `(K,)` of a head in bf16; all other tokens can never be predicted."""
    kept = weight[keep].bfloat16().float()
    return spread(Compressed(kept, 2 * kept.numel()), keep, len(weight))


def spread(kept: Compressed, keep: Tensor, num_classes: int) -> Compressed:
    """A head `(V, hidden)` of which only the rows `keep` `(K,)` are left, in some compressed form."""
    rows = torch.full((num_classes, kept.weight.shape[1]), float("nan"))
    rows[keep] = kept.weight
    return Compressed(rows, kept.num_bytes)


def _rounding(values: Tensor, bits: int) -> Rounding:
    """To the nearest of the integers that cover `values` along the last axis, with scale and offset in bf16."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(torch.bfloat16).tiny)
    return partial(_rounded, scale=scale.bfloat16().float(), low=low.bfloat16().float(), bits=bits)


def _rounded(values: Tensor, scale: Tensor, low: Tensor, bits: int) -> Tensor:
    return ((values - low) / scale).round().clamp(0, 2**bits - 1) * scale + low
