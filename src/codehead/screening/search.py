"""The search of a screen: hidden states → the tokens that may score best, and what the others score at most."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.codes.packing import row_bytes
from codehead.decoding.fast_scan import Ceilings, FastScan, Found, Numbers, bit_tables, copies

if TYPE_CHECKING:
    from codehead.screening.screen import Screen

ROUNDS = 4
"""In which the bits that were not scanned are read, of half as many tokens each."""
FLOAT32 = 1e-6
"""What float32 may have done to bit logits, as a share of all they add up to."""


class Candidates(NamedTuple):
    """The tokens that score best by the code."""

    ids: np.ndarray
    """`(positions, m)`, int64."""
    rest: np.ndarray | None
    """`(positions,)`, in mode "exact": what the other tokens score at most, if the bound holds."""


BYTES = (np.arange(256) >> np.arange(8)[:, None] & 1).astype(np.float32)
"""`(8, 256)`: the bits of every byte, least significant first."""


@final
class Search:
    """The index over the codewords of a screen, for the rows of a head whose scores at the mean are `biases` `(V,)`."""

    def __init__(self, screen: Screen, biases: np.ndarray) -> None:
        self.settings = settings = screen.settings
        self.mean, self.white, self.common = (screen.get(name).clone() for name in ("mean", "white", "common"))
        self.sizes, self.coordinates = screen.get("sizes").numpy().copy(), screen.coordinates.long().numpy()
        first, last = np.split(screen.plane.numpy(), [row_bytes(settings.scanned_bits)], axis=1)
        rounds = min(ROUNDS, last.shape[1])
        self.rounds = [np.ascontiguousarray(part) for part in np.array_split(last, rounds, axis=1)] if rounds else []
        self.numbers = Numbers.of(biases)
        self.ceilings = Ceilings.of(screen.get("norms").numpy()) if settings.blocks else None
        planes = [first, *([] if self.ceilings is None else [self.ceilings.plane]), self.numbers.plane]
        parts = copies(screen.get("spans").double().numpy())
        self.scan = FastScan(np.concatenate(planes, axis=1), parts)

    def best(self, hidden: Tensor, count: int) -> Candidates:
        """The `count` tokens that may score best, by hidden states `(positions, H)`: by score, or by what bounds it."""
        white = self.whitened(hidden)
        logits = self.bit_logits(white)
        found = self.scan.search(self.tables(white, logits), min(max(count, self.settings.scanned), self.classes))
        if self.rounds:
            return Candidates(self._refined(found, logits, count), None)
        return Candidates(found.ids, self._rest(found, white, logits) if self.settings.mode == "exact" else None)

    @property
    def classes(self) -> int:
        """V."""
        return self.settings.num_classes

    def whitened(self, hidden: Tensor) -> Tensor:
        """h′ `(positions, rank)`, float32."""
        return F.linear(hidden.float() - self.mean, self.white)

    def bit_logits(self, white: Tensor) -> np.ndarray:
        """`(positions, n)`, float32: the scores of the code are ½ c · z."""
        return np.asarray(white.numpy().take(self.coordinates, axis=1) * self.sizes)

    def tables(self, white: Tensor, logits: np.ndarray) -> np.ndarray:
        """`(positions, M, 16)`: of the bits, of the bounds of residuals, and of what every token scores at the mean."""
        bits = bit_tables(logits[:, : self.settings.scanned_bits])
        parts = [bits, np.broadcast_to(self.numbers.tables, (len(white), *self.numbers.tables.shape))]
        if self.ceilings is not None:
            norms = block_norms(white, self.settings.blocks).numpy()
            parts.insert(1, self.ceilings.tables(self.settings.factor * norms))
        return np.concatenate(parts, axis=1)

    def spans(self, hidden: Tensor) -> Tensor:
        """How wide every table `(M,)` usually is at hidden states `(positions, H)`."""
        white = self.whitened(hidden)
        tables = self.tables(white, self.bit_logits(white))
        return torch.from_numpy(np.quantile(np.ptp(tables, axis=2), 0.9, axis=0))

    def _refined(self, found: Found, logits: np.ndarray, count: int) -> np.ndarray:
        """The best `(positions, count)` of what was found, best first; every round reads bits of the better half."""
        last = logits[:, self.settings.scanned_bits :]
        tables = np.pad(last, ((0, 0), (0, -last.shape[1] % 8))).reshape(len(logits), -1, 8) @ BYTES
        kept = []
        for ids, scores, table in zip(found.ids, found.scores, tables, strict=True):
            for part, own in zip(self.rounds, np.array_split(table, len(self.rounds)), strict=True):
                scores = scores + _sums(own, part.take(ids, axis=0))
                best = np.argsort(-scores)[: max(count, len(ids) // 2)]
                ids, scores = ids[best], scores[best]
            kept.append(ids[:count])
        return np.stack(kept)

    def bounds(self, hidden: Tensor, count: int) -> np.ndarray:
        """What all but the first 1, 2, … `count` tokens score at most, `(positions, count)`, in mode "exact"."""
        white = self.whitened(hidden)
        logits = self.bit_logits(white)
        return self._bounds(self.scan.search(self.tables(white, logits), count), white, logits)

    def _rest(self, found: Found, white: Tensor, logits: np.ndarray) -> np.ndarray:
        """What tokens that were not found score at most `(positions,)`."""
        if found.ids.shape[1] >= self.classes:
            return np.full(len(logits), -np.inf)
        last = Found(found.ids[:, -1:], found.scores[:, -1:], found.errors)
        return self._bounds(last, white, logits)[:, 0]

    def _bounds(self, found: Found, white: Tensor, logits: np.ndarray) -> np.ndarray:
        """What those that were found score at most, and those after them `(positions, m)`."""
        every, logits = (white @ self.common).double().numpy(), logits.astype(np.float64)
        size = np.abs(logits).sum(1) + np.abs(every)
        added = every - logits.sum(1) / 2 + found.errors + self.numbers.error + FLOAT32 * size
        return np.asarray(found.scores + added[:, None])


def _sums(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sums `(m,)` of the entries of a table `(bytes, 256)` that rows `(m, bytes)` name."""
    entries = table.ravel().take(rows + np.arange(0, table.size, table.shape[1]))
    return np.einsum("ij->i", entries)  # half the time of sum(axis=1)


def block_norms(values: Tensor, blocks: int) -> Tensor:
    """Norms `(rows, blocks)` of values `(rows, coordinates)`, rounded up a little."""
    parts = torch.tensor_split(values, blocks, dim=1) if blocks else ()
    found = [part.double().norm(dim=1).float() * (1 + 1e-6) for part in parts]
    return torch.stack(found, dim=1) if found else values.new_zeros(len(values), 0)
