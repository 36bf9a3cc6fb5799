"""Token scores by one matrix product with the coding matrix (two if the code is ternary)."""

from __future__ import annotations

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding.decoders import DECODERS, Terms


def scores(bit_logits: Tensor, table: CodewordTable, decoder: str) -> tuple[Tensor, Tensor | None]:
    """Scores `(…, V)` of all tokens without, and beside them, the constant `(…, 1)` that all of them share.

    O(n·V) operations a position, O(V) if the code is one-vs-all. In float32 (float64 if the bit logits are): sums
    of many bits rounded to bfloat16 would tie. The constant stays apart for the same reason.
    """
    wide = bit_logits if bit_logits.dtype == torch.float64 else bit_logits.float()
    terms = DECODERS.get(decoder)(wide)
    return _varying(terms, table), None if terms.constant is None else _shared(terms, table)


def _varying(terms: Terms, table: CodewordTable) -> Tensor:
    if table.is_implicit:  # row v is −1 everywhere but at v: signed · c_v = 2 signed_v − Σ signed
        return 2 * terms.signed
    result = terms.signed @ table.signs().to(terms.signed.dtype).T
    if terms.support is not None and table.is_ternary:
        result = result + terms.support @ table.support().to(terms.support.dtype).T
    return result


def _shared(terms: Terms, table: CodewordTable) -> Tensor:
    """In a binary code every position is in the support, so its weights add the same to every token."""
    assert terms.constant is not None
    result = terms.constant
    if terms.support is not None and not table.is_ternary:
        result = result + terms.support.sum(-1, keepdim=True)
    return result - terms.signed.sum(-1, keepdim=True) if table.is_implicit else result
