"""Bilinear forms: scores that are inner products with the codeword and with its support.

With x the prediction vector and c a codeword over {−1, 0, +1}, many token scores can be written

    score(c) = signed · c + support · |c| + constant

where the three terms depend on the bit logits alone. One matrix product with the coding matrix therefore scores all
tokens (two if the code is ternary): O(n·V) operations a position, O(V) if the code is one-vs-all.

The two products of a ternary code sum `support + signed` where a symbol is +1 and `support − signed` where it is −1:
`signed · c` and `support · |c|` themselves would cancel where a large bit logit agrees with the codeword. Bit logits so
large that others are lost beside them are read so by every code.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding.forms import Scored
from codehead.decoding.precision import is_uneven


class Terms(NamedTuple):
    """The bilinear form of one decoder for given bit logits `(…, n)`."""

    signed: Tensor
    """`(…, n)`: weights of the codeword's symbols."""
    support: Tensor | None
    """`(…, n)`: weights of the codeword's non-zero positions; None if they do not count."""
    constant: Tensor | None
    """`(…, 1)`: added to every score; None if scores mean something only up to a constant of the bit logits."""

    def scores(self, table: CodewordTable) -> Scored:
        """The scores; the constant stays apart from them."""
        if self.support is not None and self._is_sided(table):
            values, shared = table.sided_product(self.support + self.signed, self.support - self.signed), self.constant
        else:
            values, shared = self._varying(table), self.shared(table)
        return Scored(values, None if shared is None else lambda some: some + shared)

    def _is_sided(self, table: CodewordTable) -> bool:
        return table.is_ternary or (not table.is_implicit and is_uneven(self.signed))

    def _varying(self, table: CodewordTable) -> Tensor:
        if table.is_implicit:  # row v is −1 everywhere but at v: signed · c_v = 2 signed_v − Σ signed
            return 2 * self.signed
        return table.product(self.signed)

    def shared(self, table: CodewordTable) -> Tensor | None:
        """What is added to all scores alike, `(…, 1)`.

        In a binary code every position is in the support, so its weights add the same to every token.
        """
        if self.constant is None:
            return None
        result = self.constant
        if self.support is not None and not table.is_ternary:
            result = result + self.support.sum(-1, keepdim=True)
        return result - self.signed.sum(-1, keepdim=True) if table.is_implicit else result
