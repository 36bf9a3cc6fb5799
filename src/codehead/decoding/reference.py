"""The plain definition of every decoder in float64: the truth that fast implementations are tested against.

One position and one token at a time would be plainer still; broadcasting `(…, 1, n)` against `(V, n)` is the only
liberty taken. Memory is O(positions · V · n): for tests and small vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.codes.table import CodewordTable
from codehead.registry import Registry

REFERENCES: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("reference decoder")


@REFERENCES.register("hamming")
def hamming(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """Negated number of disagreeing bits; a zero counts half (HD in the ECOC literature)."""
    return -((1 - torch.sign(bit_logits) * codewords) / 2).sum(-1)


@REFERENCES.register("manhattan")
def manhattan(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """Negated Σ|x − c|, x = 2σ(z) − 1."""
    return -(2 * torch.sigmoid(bit_logits) - 1 - codewords).abs().sum(-1)


@REFERENCES.register("euclidean")
def euclidean(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """Negated Σ(x − c)², x = 2σ(z) − 1."""
    return -(2 * torch.sigmoid(bit_logits) - 1 - codewords).square().sum(-1)


@REFERENCES.register("likelihood")
def likelihood(bit_logits: Tensor, codewords: Tensor) -> Tensor:
    """Σ log σ(c·z) over the non-zero positions of the codeword."""
    return (F.logsigmoid(bit_logits * codewords) * codewords.abs()).sum(-1)


def scores(bit_logits: Tensor, table: CodewordTable, decoder: str) -> tuple[Tensor, None]:
    """Scores `(…, V)` in float64 for bit logits `(…, n)`; nothing is kept apart from them."""
    codewords = table.signs().to(bit_logits.device).double()
    return REFERENCES.get(decoder)(bit_logits.double().unsqueeze(-2), codewords), None
