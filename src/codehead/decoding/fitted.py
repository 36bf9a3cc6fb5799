"""Decoders that learn: weights fitted to the predictions for tokens whose labels are known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding.forms import Form, Weights
from codehead.errors import ConfigurationError

SEEN = "seen"
"""The weight that every such decoder has: how many tokens it was fitted to, all 0 before."""


class FittedDecoder(ABC):
    """A decoder with weights of its own.

    The weights are int32, also where they stand for other numbers: a model's cast to half precision spares integers.
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


def require_fitted(decoder: str, part: FittedDecoder, table: CodewordTable, weights: Weights | None) -> None:
    """Raise a ConfigurationError unless the weights are those of the decoder and table, and fitted."""
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
