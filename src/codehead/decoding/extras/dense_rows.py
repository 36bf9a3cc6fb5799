"""A head with dense rows for a shortlist of tokens beside its bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ShortlistHead(nn.Module):
    """Hidden states `(…, hidden)` → `(…, n + K)`: the bit logits of another head, then a logit per listed token.

    The rows `(K, hidden)` start at zero: a new shortlist changes nothing yet.
    """

    def __init__(self, bits: nn.Module, hidden_size: int, rows: int) -> None:
        super().__init__()
        self.bits = bits
        self.rows = nn.Linear(hidden_size, rows, bias=False)
        nn.init.zeros_(self.rows.weight)

    @property
    def weight(self) -> Tensor:
        """The `weight` of the head of the bits, which tells device and dtype to those who ask."""
        weight: Tensor = self.bits.weight  # type: ignore[assignment]
        return weight

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, hidden)` → `(…, n + K)`."""
        return torch.cat([self.bits(hidden), self.rows(hidden)], dim=-1)
