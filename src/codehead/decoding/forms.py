"""What a decoder makes of bit logits: a form that can score the codewords of any table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable

CHUNK_SYMBOLS = 2**23
"""Symbols of codewords that are worked on at a time where no single matrix product does it (32 MiB in float32)."""

Weights = Mapping[str, Tensor]
"""What a decoder has learnt from predictions: see `codehead.decoding.fitted`."""


class Scored(NamedTuple):
    """The scores of all tokens, as exact as they can be ranked."""

    values: Tensor
    """`(…, V)`: what tokens are ranked by; larger is better."""
    finish: Callable[[Tensor], Tensor] | None = None
    """What is left to do to values; non-decreasing, and kept back because rounding would make tokens tie."""

    def finished(self, values: Tensor) -> Tensor:
        """The scores that belong to some of the values."""
        return values if self.finish is None else self.finish(values)


class Form(Protocol):
    """What a decoder returns for bit logits `(…, n)`."""

    def scores(self, table: CodewordTable) -> Scored:
        """The scores of the V codewords of a table."""
        ...


class ByCodeword(NamedTuple):
    """Any score at all, computed for some of the codewords at a time: O(n·V) operations a position, none of them fast.

    `definition` takes bit logits `(…, 1, n)` and codewords `(rows, n)` and returns scores `(…, rows)`, as the plain
    definitions in `codehead.decoding.reference` do.
    """

    bit_logits: Tensor
    definition: Callable[[Tensor, Tensor], Tensor]

    def scores(self, table: CodewordTable) -> Scored:
        bit_logits = self.bit_logits.unsqueeze(-2)
        pieces = chunks(table, bit_logits, self.bit_logits.numel())
        parts = [self.definition(bit_logits, codewords) for _, codewords in pieces]
        return Scored(torch.cat(parts, dim=-1))


def chunks(table: CodewordTable, like: Tensor, symbols: int) -> Iterator[tuple[slice, Tensor]]:
    """The coding matrix piece by piece: which rows, and their codewords `(rows, n)`, dtype and device as of `like`.

    `symbols` are the numbers computed per row, which bound the rows of a piece. An implicit code is written out as it
    is needed.
    """
    rows = max(1, CHUNK_SYMBOLS // max(1, symbols))
    whole = None if table.is_implicit or table.packed else table.signs()
    for start in range(0, table.num_classes, rows):
        part = slice(start, min(start + rows, table.num_classes))
        if whole is None:
            codewords = table.lookup(torch.arange(part.start, part.stop, device=like.device))
        else:
            codewords = whole[part]
        yield part, codewords.to(like.dtype)
