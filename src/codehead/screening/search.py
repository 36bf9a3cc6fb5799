"""The search of a screen: hidden states → the tokens that may score best, and what the others score at most."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.decoding.fast_scan import Ceilings, FastScan, Numbers, bit_tables, copies

if TYPE_CHECKING:
    from codehead.screening.screen import Screen

FLOAT32 = 1e-6
"""What float32 may have done to bit logits, as a share of all they add up to."""


class Candidates(NamedTuple):
    """The tokens that score best by the code."""

    ids: np.ndarray
    """`(positions, m)`, int64."""
    rest: np.ndarray
    """`(positions,)`: what the other tokens score at most, if the bound holds; meaningless in mode "fast"."""


class _Tables(NamedTuple):
    tables: np.ndarray
    """`(positions, M, 16)`, of a scan."""
    constant: np.ndarray
    """`(positions,)`: what is added to its sums."""
    size: np.ndarray
    """`(positions,)`: what these cannot exceed."""


@final
class Search:
    """The index over the codewords of a screen, for the rows of a head whose scores at the mean are `biases` `(V,)`."""

    def __init__(self, screen: Screen, biases: np.ndarray) -> None:
        settings = screen.settings
        self.factor, self.blocks, self.num_classes = settings.factor, settings.blocks, settings.num_classes
        self.mean, self.white, self.common = (screen.get(name).clone() for name in ("mean", "white", "common"))
        self.sizes, self.coordinates = screen.get("sizes").double().numpy(), screen.coordinates.numpy().copy()
        self.numbers = Numbers.of(biases)
        self.ceilings = Ceilings.of(screen.get("norms").numpy()) if self.blocks else None
        planes = [screen.plane.numpy(), *([] if self.ceilings is None else [self.ceilings.plane]), self.numbers.plane]
        parts = copies(screen.get("spans").double().numpy())
        self.scan = FastScan(np.concatenate(planes, axis=1), parts)

    def best(self, hidden: Tensor, count: int) -> Candidates:
        """The `count` tokens that may score best, by hidden states `(positions, H)`: by score, or by what bounds it."""
        tables, constant, size = self.tables(self.whitened(hidden))
        found = self.scan.search(tables, min(count, self.num_classes))
        rest = found.scores[:, -1] + constant + found.errors + self.numbers.error + FLOAT32 * size
        return Candidates(found.ids, np.where(count >= self.num_classes, -np.inf, rest))

    def whitened(self, hidden: Tensor) -> Tensor:
        """h′ `(positions, rank)`, float32."""
        return F.linear(hidden.float() - self.mean, self.white)

    def bit_logits(self, white: Tensor) -> np.ndarray:
        """`(positions, n)`, float64: the scores of the code are ½ c · z."""
        return np.asarray(white.numpy()[:, self.coordinates] * self.sizes)

    def tables(self, white: Tensor) -> _Tables:
        """Of the bits, of the bounds of residuals, and of what every token scores at the mean."""
        logits, common = self.bit_logits(white), (white @ self.common).numpy()
        parts = [bit_tables(logits), np.broadcast_to(self.numbers.tables, (len(white), *self.numbers.tables.shape))]
        if self.ceilings is not None:
            norms = block_norms(white, self.blocks).numpy()
            parts.insert(1, self.ceilings.tables(self.factor * norms))
        size = np.abs(logits).sum(1) + np.abs(common)
        return _Tables(np.concatenate(parts, axis=1), common - logits.sum(1) / 2, size)

    def spans(self, hidden: Tensor) -> Tensor:
        """How wide every table `(M,)` usually is at hidden states `(positions, H)`."""
        return torch.from_numpy(np.quantile(np.ptp(self.tables(self.whitened(hidden)).tables, axis=2), 0.9, axis=0))


def block_norms(values: Tensor, blocks: int) -> Tensor:
    """Norms `(rows, blocks)` of values `(rows, coordinates)`, rounded up a little."""
    parts = torch.tensor_split(values, blocks, dim=1) if blocks else ()
    found = [part.double().norm(dim=1).float() * (1 + 1e-6) for part in parts]
    return torch.stack(found, dim=1) if found else values.new_zeros(len(values), 0)
