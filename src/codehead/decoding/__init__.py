"""Decoding: bit logits → token ids and scores. `decode` is the one door; `impl` chooses how it is computed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding import matmul, reference
from codehead.decoding.decoders import DECODERS
from codehead.decoding.topk import top_k
from codehead.errors import ConfigurationError
from codehead.registry import Registry

__all__ = ["DECODERS", "IMPLEMENTATIONS", "Decoded", "decode", "refuse_non_finite", "token_scores"]

Implementation = Callable[[Tensor, CodewordTable, str], "tuple[Tensor, Tensor | None]"]
"""(bit logits `(…, n)`, table, decoder) → scores `(…, V)`, and a constant `(…, 1)` to add to them."""

IMPLEMENTATIONS: Registry[Implementation] = Registry("decoding implementation")
IMPLEMENTATIONS.register("matmul")(matmul.scores)
IMPLEMENTATIONS.register("reference")(reference.scores)


class Decoded(NamedTuple):
    """The best tokens of every position, best first."""

    ids: Tensor
    """`(…, k)`, int64."""
    scores: Tensor
    """`(…, k)`: negated distances, or codeword log-posteriors up to a constant of the position."""


def token_scores(bit_logits: Tensor, table: CodewordTable, decoder: str = "likelihood", impl: str = "matmul") -> Tensor:
    """Scores `(…, V)` of every token for bit logits `(…, n)`; larger is better. Never under autocast.

    Raises:
        ConfigurationError: unknown decoder or implementation, or bit logits of another length than the code.
    """
    scores, constant = _scores(bit_logits, table, decoder, impl)
    return scores if constant is None else scores + constant


def _scores(bit_logits: Tensor, table: CodewordTable, decoder: str, impl: str) -> tuple[Tensor, Tensor | None]:
    DECODERS.get(decoder)
    if bit_logits.shape[-1] != table.length:
        raise ConfigurationError(
            f"bit logits have {bit_logits.shape[-1]} columns but the code has length {table.length}; "
            "the head and the codebook must be built for the same number of bits"
        )
    with _no_autocast(bit_logits.device.type):
        return IMPLEMENTATIONS.get(impl)(bit_logits, table, decoder)


def refuse_non_finite(bit_logits: Tensor) -> None:
    """Raise a ConfigurationError if a bit logit is NaN or infinite: no token is nearest then."""
    if not torch.isfinite(bit_logits).all():
        raise ConfigurationError(
            "the bit logits contain NaN or infinity, so no token is nearest; check the hidden states (a diverged "
            "model, or float16 overflow: load in bfloat16 or float32)"
        )


def _no_autocast(device_type: str) -> AbstractContextManager[None]:
    return torch.autocast(device_type, enabled=False) if torch.amp.is_autocast_available(device_type) else nullcontext()


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

    Raises:
        ConfigurationError: as `token_scores`; bit logits that are NaN or infinite; k or `ties` out of range.
    """
    scores, constant = _scores(bit_logits, table, decoder, impl)
    refuse_non_finite(bit_logits)
    ids = top_k(scores, k, ties)
    best = scores.gather(-1, ids)
    return Decoded(ids, best if constant is None else best + constant)
