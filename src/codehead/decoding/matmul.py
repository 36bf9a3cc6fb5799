"""Token scores by matrix products with the coding matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding.decoders import DECODERS
from codehead.decoding.fitted import FittedDecoder
from codehead.decoding.forms import Scored, Weights


def scores(bit_logits: Tensor, table: CodewordTable, decoder: str, weights: Weights | None = None) -> Scored:
    """Scores `(…, V)` of all tokens, as the form of the decoder computes them.

    In float32 (float64 if the bit logits are): sums of many bits rounded to bfloat16 would tie.
    """
    wide = bit_logits if bit_logits.dtype == torch.float64 else bit_logits.float()
    part = DECODERS.get(decoder)
    form = part(wide, weights or {}) if isinstance(part, FittedDecoder) else part(wide)
    return form.scores(table)
