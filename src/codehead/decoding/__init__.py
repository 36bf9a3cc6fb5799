"""Decoding: bit logits → token ids and scores. `decode` is the entry point.

Importing this registers every decoder: the bilinear ones in `decoders`, others in `hard_bits` and `soft_bits`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding import hard_bits, scan, soft_bits  # noqa: F401  (registers)
from codehead.decoding.decoders import DECODERS, ByCodeword, FittedDecoder, Form, Scored, Terms, Weights, fitted
from codehead.decoding.extras import Corrections
from codehead.decoding.numerics import (
    check_range,
    narrowed,
    no_autocast,
    require_real,
    require_whole,
    roomy,
    top_k,
    wide,
)
from codehead.errors import ConfigurationError, DataError

__all__ = [
    "DECODERS",
    "ByCodeword",
    "Decoded",
    "FittedDecoder",
    "Form",
    "Scored",
    "Terms",
    "Weights",
    "decode",
    "fit",
    "posterior_scores",
    "refuse_non_finite",
    "scanned",
    "token_scores",
]


class Decoded(NamedTuple):
    """The best tokens of every position, best first."""

    ids: Tensor
    """`(…, k)`, int64."""
    scores: Tensor
    """`(…, k)`: negated distances or losses, or log-probabilities (likelihood: up to a constant of the position)."""


def token_scores(
    bit_logits: Tensor, table: CodewordTable, decoder: str = "likelihood", weights: Weights | None = None
) -> Tensor:
    """Scores `(…, V)` of every token for bit logits `(…, n)`; larger is better. Never under autocast.

    `weights` are those of a decoder that is fitted to predictions, as `fit` returns them; others need none. A score
    beyond the range of float32 is clamped to it.

    Raises:
        ConfigurationError: an unknown decoder; bit logits that do not have the length of the code, are not floating
            point, are NaN or infinite, or are so large that float64 overflows; a decoder that is not fitted, or that
            cannot handle a code of this size.
    """
    return _scores(bit_logits, table, decoder, weights).finished()


def posterior_scores(bit_logits: Tensor, table: CodewordTable) -> Tensor:
    """Log-likelihoods `(…, V)` up to a constant of the position: their softmax is the codeword posterior.

    Models and losses use this: NaN and infinity are not checked for and give NaN, as in a stock model.
    """
    return _unchecked_scores(bit_logits, table, "likelihood", None).finished()


def _scores(bit_logits: Tensor, table: CodewordTable, decoder: str, weights: Weights | None) -> Scored:
    require_real("bit logits", bit_logits)
    refuse_non_finite(bit_logits)
    return _unchecked_scores(bit_logits, table, decoder, weights)


def _unchecked_scores(bit_logits: Tensor, table: CodewordTable, decoder: str, weights: Weights | None) -> Scored:
    """Scores from the decoder's form, in float32 or float64; float32 that would overflow is ranked in float64."""
    part = DECODERS.get(decoder)
    refuse_other_length(bit_logits, table)
    with no_autocast(bit_logits.device.type):
        z = roomy(bit_logits)
        form = part(z, fitted(decoder, part, table, weights)) if isinstance(part, FittedDecoder) else part(z)
        scored, dtype = form.scores(table), wide(bit_logits[..., :0]).dtype
    is_relative = isinstance(form, Terms) and form.constant is None
    return Scored(scored.values, lambda some: narrowed(scored.finished(some), dtype, shifted=is_relative))


def fit(decoder: str, bit_logits: Tensor, labels: Tensor, table: CodewordTable) -> dict[str, Tensor]:
    """The weights of a decoder, fitted to bit logits `(tokens, n)` whose labels `(tokens,)` are known.

    The tokens should not be those that the head was trained on, since the decoder learns from the head's errors.

    Raises:
        ConfigurationError: the decoder has nothing to fit, its weights would be too large for the code, or the bit
            logits are not finite, not floating point, beyond float32, or do not fit the labels or the code.
        DataError: there are no tokens, or a label is not a class of the code.
    """
    part = DECODERS.get(decoder)
    if not isinstance(part, FittedDecoder):
        others = [name for name in DECODERS.names() if isinstance(DECODERS.get(name), FittedDecoder)]
        raise ConfigurationError(f"decoder {decoder!r} has nothing to fit; those that do: {', '.join(others)}")
    if labels.ndim != 1 or bit_logits.shape != (len(labels), table.length):
        raise ConfigurationError(
            f"bit logits of shape {tuple(bit_logits.shape)} and labels of shape {tuple(labels.shape)} cannot be fitted "
            f"to: they must be (tokens, {table.length}) and (tokens,)"
        )
    require_real("bit logits", bit_logits)
    require_whole("labels", labels)
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= table.num_classes:
        found = f"{int(labels.min())} … {int(labels.max())}" if len(labels) else "none"
        raise DataError(f"labels to fit a decoder to must be in 0 … {table.num_classes - 1}, found {found}")
    refuse_non_finite(bit_logits)
    if float(bit_logits.abs().max()) > torch.finfo(torch.float32).max:
        raise ConfigurationError("bit logits beyond the range of float32 cannot be fitted to; scale them down")
    part.shapes(table)  # refuses a code that is too large before anything is computed
    # The weights become buffers that can be loaded into, so they are never made in inference mode.
    with torch.inference_mode(False), torch.no_grad(), no_autocast(bit_logits.device.type):
        return part.fit(wide(bit_logits), labels.to(bit_logits.device).long(), table)


def refuse_other_length(bit_logits: Tensor, table: CodewordTable) -> None:
    """Raise a ConfigurationError if there are more or fewer bit logits than bits."""
    if bit_logits.shape[-1] != table.length:
        raise ConfigurationError(
            f"bit logits have {bit_logits.shape[-1]} columns but the code has length {table.length}; "
            "the head and the codebook must be built for the same number of bits"
        )


def refuse_non_finite(bit_logits: Tensor) -> None:
    """Raise a ConfigurationError if a bit logit is NaN or infinite: no token is nearest then."""
    if not bit_logits.is_meta and not torch.isfinite(bit_logits).all():
        raise ConfigurationError(
            "the bit logits contain NaN or infinity, so no token is nearest; check the hidden states (a diverged "
            "model, or float16 overflow: load in bfloat16 or float32)"
        )


def decode(
    bit_logits: Tensor,
    table: CodewordTable,
    *,
    decoder: str = "likelihood",
    k: int = 1,
    ties: str | int = "lowest",
    impl: str = "auto",
    weights: Weights | None = None,
) -> Decoded:
    """The `k` nearest tokens of every position for bit logits `(…, n)`.

    `ties` orders tokens of equal score: "lowest" id first, or at random by an integer seed. `impl` is "plain", which
    scores all tokens, "scan", which scores those that may be among the nearest, or "auto", which chooses one of them
    (`codehead.decoding.scan.choose`). `weights` as for `token_scores`.

    Raises:
        ConfigurationError: as `token_scores`; bit logits that are NaN or infinite; k or `ties` out of range; "scan"
            for scores that are not sums over bits.
    """
    refuse_other_length(bit_logits, table)
    found = scanned(impl, bit_logits, table, decoder, k, ties)
    if found is not None:
        return found
    scored = _scores(bit_logits, table, decoder, weights)
    ids = top_k(scored.values, k, ties)
    return Decoded(ids, scored.finished(scored.values.gather(-1, ids)))


def scanned(
    impl: str,
    outputs: Tensor,
    table: CodewordTable,
    decoder: str,
    k: int,
    ties: str | int = "lowest",
    corrections: Corrections | None = None,
) -> Decoded | None:
    """The k nearest tokens for outputs `(…, n + m + K)` by scanning; None if all tokens are to be scored.

    Raises:
        ConfigurationError: as `decode`.
    """
    check_range(table.num_classes, k)
    positions = outputs[..., 0].numel()
    choice = scan.choose(impl, table, decoder, corrections, k=k, size=positions)
    learning = torch.compiler.is_compiling() or (outputs.requires_grad and torch.is_grad_enabled())
    if choice.impl == "plain" or (impl == "auto" and (learning or ties != "lowest")):
        return None
    if ties != "lowest":
        raise ConfigurationError(f"impl='scan' orders equal scores by token id, not by ties={ties!r}; omit one of them")
    require_real("bit logits", outputs)
    refuse_non_finite(outputs)
    if outputs.dtype == torch.float64:
        roomy(outputs)  # refuses values whose sums overflow
    return Decoded(*scan.best_tokens(outputs, table, decoder, k, corrections, fast=choice.fast))
