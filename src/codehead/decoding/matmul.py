"""Token scores by matrix products with the coding matrix."""

from __future__ import annotations

from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding.decoders import DECODERS
from codehead.decoding.fitted import FittedDecoder
from codehead.decoding.forms import Scored, Weights
from codehead.decoding.precision import narrowed, roomy, wide
from codehead.decoding.terms import Terms


def scores(bit_logits: Tensor, table: CodewordTable, decoder: str, weights: Weights | None = None) -> Scored:
    """Scores `(…, V)` of all tokens, as the form of the decoder computes them, in float32 or float64.

    Float32 that would overflow is ranked in float64.
    """
    z, part = roomy(bit_logits), DECODERS.get(decoder)
    form = part(z, weights or {}) if isinstance(part, FittedDecoder) else part(z)
    scored, dtype = form.scores(table), wide(bit_logits[..., :0]).dtype
    if z.dtype == dtype:
        return scored
    is_relative = isinstance(form, Terms) and form.constant is None
    return Scored(scored.values, lambda some: narrowed(scored.finished(some), dtype, shifted=is_relative))
