"""The registry of decoders, the forms that they return, and the decoders that are one bilinear form of bit logits.

A decoder is a function from bit logits `(…, n)` to a form that scores codewords; larger scores are better, and a
distance is returned negated. z are bit logits; x = tanh(z/2) = 2σ(z) − 1 are soft bits, on the codeword's ±1 scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.codes.packing import slices
from codehead.codes.table import CodewordTable
from codehead.decoding.numerics import is_uneven
from codehead.errors import ConfigurationError
from codehead.registry import Registry

CHUNK_SYMBOLS = 2**23
"""Codeword symbols processed at a time where one matrix product is not enough (32 MiB in float32)."""

Weights = Mapping[str, Tensor]
"""The weights of a fitted decoder by name: see `FittedDecoder`."""


class Scored(NamedTuple):
    """The scores of all tokens, in a form that ranks them as exactly as possible."""

    values: Tensor
    """`(…, V)`: what tokens are ranked by; larger is better."""
    finish: Callable[[Tensor], Tensor] | None = None
    """The last step from values to scores; non-decreasing, and deferred because rounding would make tokens tie."""

    def finished(self, some: Tensor | None = None) -> Tensor:
        """The scores of all values, or of some."""
        values = self.values if some is None else some
        return values if self.finish is None else self.finish(values)


class Form(Protocol):
    """What a decoder returns for bit logits `(…, n)`."""

    def scores(self, table: CodewordTable) -> Scored:
        """The scores of the V codewords of a table."""


class ByCodeword(NamedTuple):
    """An arbitrary score, computed for some codewords at a time: O(n·V) slow operations per position.

    `definition` takes bit logits `(…, 1, n)` and codewords `(rows, n)` and returns scores `(…, rows)`.
    """

    bit_logits: Tensor
    definition: Callable[[Tensor, Tensor], Tensor]

    def scores(self, table: CodewordTable) -> Scored:
        bit_logits = self.bit_logits.unsqueeze(-2)
        pieces = chunks(table, bit_logits, self.bit_logits.numel())
        parts = [self.definition(bit_logits, codewords) for _, codewords in pieces]
        return Scored(torch.cat(parts, dim=-1))


def chunks(table: CodewordTable, like: Tensor, symbols: int) -> Iterator[tuple[slice, Tensor]]:
    """The coding matrix in pieces: which rows, and their codewords `(rows, n)`, with dtype and device of `like`.

    `symbols` is how many numbers are computed per row, which limits the rows of a piece. An implicit code is written
    out as needed.
    """
    whole = None if table.is_implicit or table.packed else table.signs()
    for part in slices(table.num_classes, CHUNK_SYMBOLS // max(1, symbols)):
        rows = torch.arange(part.start, part.stop, device=like.device)
        yield part, (table.lookup(rows) if whole is None else whole[part]).to(like.dtype)


# Bilinear forms: scores that are inner products with the codeword and with its support.
#
# With x the prediction vector and c a codeword over {−1, 0, +1}, many token scores can be written
#
#     score(c) = signed · c + support · |c| + constant
#
# where the three terms depend on the bit logits alone. One matrix product with the coding matrix therefore scores all
# tokens (two if the code is ternary): O(n·V) operations per position, O(V) if the code is one-vs-all.
#
# The two products of a ternary code sum `support + signed` where a symbol is +1 and `support − signed` where it is −1:
# `signed · c` and `support · |c|` themselves would cancel where a large bit logit agrees with the codeword. All codes
# sum this way where bit logits are so large that others are lost beside them.


class Terms(NamedTuple):
    """The bilinear form of one decoder for given bit logits `(…, n)`."""

    signed: Tensor
    """`(…, n)`: weights of the codeword's symbols."""
    support: Tensor | None
    """`(…, n)`: weights of the codeword's non-zero positions; None if they do not count."""
    constant: Tensor | None
    """`(…, 1)`: added to every score; None if scores are defined only up to a constant per position."""

    def scores(self, table: CodewordTable) -> Scored:
        """The scores, with the constant kept apart."""
        shared = self.shared(table)
        if table.is_implicit:  # row v is −1 everywhere but at v: signed · c_v = 2 signed_v − Σ signed
            values = 2 * self.signed
        elif self.support is not None and (table.is_ternary or is_uneven(self.signed)):
            values, shared = table.sided_product(self.support + self.signed, self.support - self.signed), self.constant
        else:
            values = table.product(self.signed)
        return Scored(values, None if shared is None else lambda some: some + shared)

    def shared(self, table: CodewordTable) -> Tensor | None:
        """The constant `(…, 1)` added to all scores.

        In a binary code every position is in the support, so its weights add the same to every token.
        """
        if self.constant is None:
            return None
        result = self.constant
        if self.support is not None and not table.is_ternary:
            result = result + self.support.sum(-1, keepdim=True)
        return result - self.signed.sum(-1, keepdim=True) if table.is_implicit else result


# Decoders that learn: weights fitted to the predictions for tokens whose labels are known.


SEEN = "seen"
"""A weight of every fitted decoder: how many tokens it was fitted to; all 0 before."""


class FittedDecoder(ABC):
    """A decoder with weights that are fitted to predictions.

    The weights are int32, even where they encode other numbers: casting a model to half precision skips integers.
    """

    @abstractmethod
    def shapes(self, table: CodewordTable) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights by name; a ConfigurationError if they would be too large."""

    @abstractmethod
    def fit(self, bit_logits: Tensor, labels: Tensor, table: CodewordTable) -> dict[str, Tensor]:
        """The weights for bit logits `(tokens, n)` in float32 or float64 whose labels are `(tokens,)`."""

    @abstractmethod
    def __call__(self, bit_logits: Tensor, weights: Weights) -> Form:
        """The form that scores bit logits `(…, n)` with fitted weights."""


def empty_weights(shapes: Mapping[str, tuple[int, ...]], table: CodewordTable) -> dict[str, Tensor]:
    """Weights before fitting: zeros of these shapes, on the device of the table."""
    device = None if table.sign_plane is None else table.sign_plane.device
    return {name: torch.zeros(shape, dtype=torch.int32, device=device) for name, shape in shapes.items()}


def fitted(decoder: str, part: FittedDecoder, table: CodewordTable, weights: Weights | None) -> Weights:
    """The weights; a ConfigurationError unless they are those of the decoder and table, and fitted."""
    advice = (
        f"decoder {decoder!r} has to be fitted to predictions first: decision.fit_decoder(bit_logits, labels) on a "
        "validation split, or weights=codehead.decoding.fit(decoder, bit_logits, labels, table)"
    )
    if weights is None:
        raise ConfigurationError(advice)
    wanted = part.shapes(table)
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != found:
        raise ConfigurationError(f"weights {found} are not those of this decoder and code, {wanted}; {advice}")
    if not weights[SEEN].is_meta and not weights[SEEN].any():
        raise ConfigurationError(advice)
    return weights


Decoder = Callable[[Tensor], Form] | FittedDecoder
DECODERS: Registry[Decoder] = Registry("decoder")


@DECODERS.register("hamming")
def hamming(bit_logits: Tensor) -> Terms:
    """−½ Σ(1 − sign(z)·c): hard bits; a zero in the codeword (or a bit logit of exactly 0) costs ½."""
    bits = torch.sign(bit_logits)
    return Terms(bits / 2, None, torch.full_like(bits[..., :1], -bits.shape[-1] / 2))


@DECODERS.register("manhattan")
def manhattan(bit_logits: Tensor) -> Terms:
    """−Σ|x − c| with soft bits x = tanh(z/2)."""
    x = torch.tanh(bit_logits / 2)
    return Terms(x, x.abs() - 1, -x.abs().sum(-1, keepdim=True))


@DECODERS.register("euclidean")
def euclidean(bit_logits: Tensor) -> Terms:
    """−Σ(x − c)² with soft bits x = tanh(z/2): the squared distance, which ranks as the distance does."""
    x = torch.tanh(bit_logits / 2)
    return Terms(2 * x, torch.full_like(x, -1.0), -x.square().sum(-1, keepdim=True))


@DECODERS.register("attenuated_euclidean")
def attenuated_euclidean(bit_logits: Tensor) -> Terms:
    """−Σ|c|(x − c)²: the squared distance over the non-zero positions (Escalera, Pujol, Radeva 2010, AED)."""
    x = torch.tanh(bit_logits / 2)
    return Terms(2 * x, -(x.square() + 1), torch.zeros_like(x[..., :1]))


@DECODERS.register("likelihood")
def likelihood(bit_logits: Tensor) -> Terms:
    """log Π σ(c·z) over the codeword's non-zero positions, up to a constant: its softmax is the codeword posterior."""
    half = bit_logits / 2
    return Terms(half, half + F.logsigmoid(-bit_logits), None)


@DECODERS.register("loss_linear")
def loss_linear(bit_logits: Tensor) -> Terms:
    """−Σ L(c·z) with L(θ) = −θ (Allwein, Schapire, Singer 2000): the sum of the margins."""
    return Terms(bit_logits, None, torch.zeros_like(bit_logits[..., :1]))
