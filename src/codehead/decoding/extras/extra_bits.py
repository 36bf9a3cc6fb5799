"""Longer codewords for the tokens that occur most: a second code over K of the tokens, added to their scores.

Most of a text is a small part of the vocabulary. m more bits for K tokens cost K·m bits and m rows of the head; in the
terms of ECOC they are m more ternary columns, 0 for all other tokens, read by their margin (`loss_linear`), as the rows
of a shortlist are.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from codehead.codes.packing import pack_bits, row_bytes
from codehead.codes.table import CodewordTable
from codehead.decoding.precision import no_autocast, wide


@final
class Refinement(nn.Module):
    """Adds ½ c · z to the scores of K tokens, with c the token's m further symbols and z their bit logits.

    The buffer `members` `(⌈V / 8⌉,)` has one bit per token, 1 for those with further symbols; `table` holds these, a
    row per such token in the order of their ids.
    """

    members: Tensor

    def __init__(self, num_classes: int, num_tokens: int, length: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("members", torch.zeros(row_bytes(num_classes), dtype=torch.uint8))
        self.table = CodewordTable.empty(num_tokens, length)

    @classmethod
    def of(cls, num_classes: int, ids: Tensor, plane: Tensor, length: int) -> Refinement:
        """For the tokens `ids` `(K,)`, ascending, whose further symbols are packed in `plane` `(K, ⌈length / 8⌉)`."""
        own = cls(num_classes, len(ids), length)
        chosen = torch.zeros(num_classes, dtype=torch.bool)
        chosen[ids.cpu().long()] = True
        own.members.copy_(torch.from_numpy(pack_bits(chosen.numpy())))
        own.set_plane(plane)
        return own

    @property
    def length(self) -> int:
        """m, the further symbols of a token."""
        return self.table.length

    @property
    def num_tokens(self) -> int:
        """K."""
        return self.table.num_classes

    @property
    def num_marked(self) -> int:
        """The tokens marked in `members`: K, unless that is damaged."""
        return int(self._marks().sum())

    def set_plane(self, plane: Tensor) -> None:
        """Other symbols, packed: uint8 `(K, ⌈m / 8⌉)`."""
        assert self.table.sign_plane is not None  # the code is not implicit
        self.table.sign_plane.copy_(plane)

    def ids(self) -> Tensor:
        """The tokens that have further symbols, ascending: `(K,)`.

        Every token is written to the place of its rank, those without a mark to one that is cut off: of a static shape,
        which compilers need, and in functions that ONNX has.
        """
        marks = self._marks()
        places = torch.where(marks, marks.cumsum(0) - 1, self.num_tokens)
        tokens = torch.arange(self.num_classes, device=marks.device)
        return tokens.new_zeros(self.num_tokens + 1).scatter(0, places, tokens)[:-1]

    def _marks(self) -> Tensor:
        """Whether each token has further symbols."""
        return torch.stack([(self.members & (1 << bit)) != 0 for bit in range(8)], dim=-1).flatten()[: self.num_classes]

    def spread(self, codewords: Tensor) -> Tensor:
        """Codewords `(V, n)` with the further symbols beside them, 0 for tokens without: `(V, n + m)`."""
        further = codewords.new_zeros(self.num_classes, self.length)
        further[self.ids()] = self.table.signs().to(codewords)
        return torch.cat([codewords, further], dim=1)

    def forward(self, scores: Tensor, bit_logits: Tensor, signs: Tensor | None = None) -> Tensor:
        """Scores `(…, V)` for m further bit logits `(…, m)`; `signs` `(K, m)` are those of the table unless given."""
        with no_autocast(scores.device.type):
            half = wide(bit_logits) / 2
            further = self.table.product(half) if signs is None else half @ signs.to(half.dtype).T
            return scores.index_add(-1, self.ids(), further.to(scores.dtype))

    def extra_repr(self) -> str:
        return f"tokens={self.num_tokens}, bits={self.length}"
