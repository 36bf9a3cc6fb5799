"""Token scores by one matrix product with the coding matrix (two if the code is ternary)."""

from __future__ import annotations

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding.decoders import DECODERS, Terms


def scores(bit_logits: Tensor, table: CodewordTable, decoder: str) -> Tensor:
    """Scores `(…, V)` of all tokens; O(n·V) operations a position, O(V) if the code is one-vs-all.

    In float32 (float64 if the bit logits are): sums of many bits rounded to bfloat16 would tie.
    """
    wide = bit_logits if bit_logits.dtype == torch.float64 else bit_logits.float()
    terms = DECODERS.get(decoder)(wide)
    if table.is_implicit:
        return _one_vs_all(terms)
    result = terms.signed @ table.signs().to(terms.signed.dtype).T
    if terms.support is not None and table.is_ternary:
        result = result + terms.support @ table.support().to(terms.support.dtype).T
    return result if terms.constant is None else result + _binary_constant(terms, table.is_ternary)


def _one_vs_all(terms: Terms) -> Tensor:
    """Σ signed·c_v = 2·signed_v − Σ signed, because row v is −1 everywhere but at v."""
    result = 2 * terms.signed
    if terms.constant is None:
        return result
    return result - terms.signed.sum(-1, keepdim=True) + _binary_constant(terms, is_ternary=False)


def _binary_constant(terms: Terms, is_ternary: bool) -> Tensor:
    """In a binary code every position is in the support, so its weights add the same to every token."""
    assert terms.constant is not None
    if terms.support is None or is_ternary:
        return terms.constant
    return terms.constant + terms.support.sum(-1, keepdim=True)
