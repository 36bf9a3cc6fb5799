"""Decoding: bit logits → token ids and scores. `decode` is the one door; `impl` chooses how it is computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding import matmul, reference
from codehead.decoding.decoders import DECODERS
from codehead.decoding.topk import top_k
from codehead.errors import ConfigurationError
from codehead.registry import Registry

__all__ = ["DECODERS", "IMPLEMENTATIONS", "Decoded", "decode", "token_scores"]

IMPLEMENTATIONS: Registry[str] = Registry("decoding implementation")
IMPLEMENTATIONS.register("matmul")("one matrix product with the coding matrix")
IMPLEMENTATIONS.register("reference")("the plain definition, float64")


class Decoded(NamedTuple):
    """The best tokens of every position, best first."""

    ids: Tensor
    """`(…, k)`, int64."""
    scores: Tensor
    """`(…, k)`: negated distances, or codeword log-posteriors up to a constant of the position."""


def token_scores(
    bit_logits: Tensor, table: CodewordTable, decoder: str = "likelihood", impl: str = "matmul"
) -> Tensor:
    """Scores `(…, V)` of every token for bit logits `(…, n)`; larger is better.

    Computed in float32 (float64 if the bit logits are), outside of any autocast: sums of many bits rounded to
    bfloat16 would tie.

    Raises:
        ConfigurationError: unknown decoder or implementation, or bit logits of another length than the code.
    """
    terms_of = DECODERS.get(decoder)
    IMPLEMENTATIONS.get(impl)
    if bit_logits.shape[-1] != table.length:
        raise ConfigurationError(
            f"bit logits have {bit_logits.shape[-1]} columns but the code has length {table.length}; "
            "the head and the codebook must be built for the same number of bits"
        )
    with torch.autocast(bit_logits.device.type, enabled=False):
        if impl == "reference":
            return reference.scores(bit_logits, table.signs().to(bit_logits.device), decoder)
        wide = bit_logits if bit_logits.dtype == torch.float64 else bit_logits.float()
        return matmul.scores(terms_of(wide), table)


def decode(
    bit_logits: Tensor,
    table: CodewordTable,
    *,
    decoder: str = "likelihood",
    k: int = 1,
    ties: str | int = "lowest",
    impl: str = "matmul",
) -> Decoded:
    """The `k` nearest tokens of every position for bit logits `(…, n)`.

    `ties` orders tokens of equal score: "lowest" id first, or at random by an integer seed.
    """
    scores = token_scores(bit_logits, table, decoder, impl)
    ids = top_k(scores, k, ties)
    return Decoded(ids, scores.gather(-1, ids))
