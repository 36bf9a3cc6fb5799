"""Token scores by matrix products with the coding matrix."""

from __future__ import annotations

from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding.decoders import DECODERS
from codehead.decoding.fitted import FittedDecoder
from codehead.decoding.forms import Scored, Weights
from codehead.decoding.precision import wide


def scores(bit_logits: Tensor, table: CodewordTable, decoder: str, weights: Weights | None = None) -> Scored:
    """Scores `(…, V)` of all tokens, as the form of the decoder computes them, in float32 or float64."""
    z, part = wide(bit_logits), DECODERS.get(decoder)
    form = part(z, weights or {}) if isinstance(part, FittedDecoder) else part(z)
    return form.scores(table)
