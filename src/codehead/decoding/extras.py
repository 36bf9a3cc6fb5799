"""Per-token extras beside the codewords: dense rows, extra bits, a bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from codehead.codes.packing import pack_bits, row_bytes
from codehead.codes.table import CodewordTable
from codehead.decoding.numerics import no_autocast, wide
from codehead.errors import ConfigurationError

# A head with dense rows for a shortlist of tokens beside its bits.


class ExtendedHead(nn.Module):
    """Hidden states `(…, hidden)` → `(…, n + K)`: the bit logits of another head, then those of K rows.

    The rows `(K, hidden)`, of extra bits and dense rows, start at zero: they change nothing at first.
    """

    def __init__(self, bits: nn.Module, hidden_size: int, rows: int) -> None:
        super().__init__()
        self.bits = bits
        self.rows = nn.Linear(hidden_size, rows, bias=False)
        nn.init.zeros_(self.rows.weight)

    @property
    def weight(self) -> Tensor:
        """The `weight` of the head of the bits, from which callers read device and dtype."""
        return self.bits.weight  # type: ignore[return-value]

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, hidden)` → `(…, n + K)`."""
        return torch.cat([self.bits(hidden), self.rows(hidden)], dim=-1)


# Longer codewords for the most frequent tokens: a second code over K of the tokens, added to their scores.
#
# Most of a text uses a small part of the vocabulary. m extra bits for K tokens cost K·m bits and m rows of the head. In
# ECOC terms they are m more ternary columns, 0 for all other tokens, decoded by their margin (`loss_linear`), like the
# rows of a shortlist.


@final
class Refinement(nn.Module):
    """Adds ½ c · z to the scores of K tokens, with c the token's m extra symbols and z their bit logits.

    The buffer `members` `(⌈V / 8⌉,)` has one bit per token, 1 for those with extra symbols; `table` holds the symbols,
    one row per such token in the order of their ids.
    """

    members: Tensor

    def __init__(self, num_classes: int, num_tokens: int, length: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("members", torch.zeros(row_bytes(num_classes), dtype=torch.uint8))
        self.table = CodewordTable.empty(num_tokens, length)

    @classmethod
    def of(cls, num_classes: int, ids: Tensor, plane: Tensor, length: int) -> Refinement:
        """For the tokens `ids` `(K,)`, ascending, whose extra symbols are packed in `plane` `(K, ⌈length / 8⌉)`."""
        own = cls(num_classes, len(ids), length)
        chosen = torch.zeros(num_classes, dtype=torch.bool)
        chosen[ids.cpu().long()] = True
        own.members.copy_(torch.from_numpy(pack_bits(chosen.numpy())))
        own.set_plane(plane)
        return own

    @property
    def length(self) -> int:
        """m, the extra symbols of a token."""
        return self.table.length

    @property
    def num_tokens(self) -> int:
        """K, the tokens with extra symbols."""
        return self.table.num_classes

    @property
    def num_marked(self) -> int:
        """The tokens marked in `members`: K, unless `members` is damaged."""
        return int(self._marks().sum())

    def set_plane(self, plane: Tensor) -> None:
        """Replace the symbols by others, packed: uint8 `(K, ⌈m / 8⌉)`."""
        assert self.table.sign_plane is not None  # the code is not implicit
        self.table.sign_plane.copy_(plane)

    def ids(self) -> Tensor:
        """The tokens that have extra symbols, ascending: `(K,)`.

        Every token is written to the place of its rank, those without a mark to one that is cut off: the shape is
        static, as compilers need, and ONNX has all the functions.
        """
        marks = self._marks()
        places = torch.where(marks, marks.cumsum(0) - 1, self.num_tokens)
        tokens = torch.arange(self.num_classes, device=marks.device)
        return tokens.new_zeros(self.num_tokens + 1).scatter(0, places, tokens)[:-1]

    def _marks(self) -> Tensor:
        """Whether each token has extra symbols."""
        return torch.stack([(self.members & (1 << bit)) != 0 for bit in range(8)], dim=-1).flatten()[: self.num_classes]

    def spread(self, codewords: Tensor) -> Tensor:
        """Codewords `(V, n)` with the extra symbols appended, 0 for tokens without: `(V, n + m)`."""
        further = codewords.new_zeros(self.num_classes, self.length)
        further[self.ids()] = self.table.signs().to(codewords)
        return torch.cat([codewords, further], dim=1)

    def forward(self, scores: Tensor, bit_logits: Tensor, signs: Tensor | None = None) -> Tensor:
        """Scores `(…, V)` for m extra bit logits `(…, m)`; `signs` `(K, m)` are those of the table unless given."""
        with no_autocast(scores.device.type):
            half = wide(bit_logits) / 2
            further = self.table.product(half) if signs is None else half @ signs.to(half.dtype).T
            return scores.index_add(-1, self.ids(), further.to(scores.dtype))

    def extra_repr(self) -> str:
        return f"tokens={self.num_tokens}, bits={self.length}"


# Per-token additions to the scores: dense rows for some tokens, a bias for every token.
#
# A code of n columns gives scores of rank n. Dense rows lift that limit where it matters, for the K most frequent
# tokens: each gets a separate bit logit, added to its score. In ECOC terms these are K more ternary columns, +1 for one
# token and 0 for all others, decoded by their margin (`loss_linear`). Longer codewords for frequent tokens
# (`Refinement`) lie between codewords and dense rows.


@final
class Corrections(nn.Module):
    """Adds to token scores `(…, V)` the outputs of dense rows `(…, K)`, a learnt bias `(V,)` and extra bits.

    The buffer `shortlist` `(K,)` holds the ids of the tokens with dense rows, int32. `token_bias` is a parameter that
    starts at zero, or None.
    """

    shortlist: Tensor
    token_bias: nn.Parameter | None

    def __init__(
        self, num_classes: int, shortlist: Tensor, token_bias: bool, refinement: Refinement | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.refinement = refinement
        self.register_buffer("shortlist", shortlist.to(torch.int32))
        self.token_bias = nn.Parameter(torch.zeros(num_classes)) if token_bias else None

    @property
    def num_rows(self) -> int:
        """K, the tokens with dense rows."""
        return len(self.shortlist)

    @property
    def num_bits(self) -> int:
        """m, the extra bits of some tokens."""
        return 0 if self.refinement is None else self.refinement.length

    @property
    def num_outputs(self) -> int:
        """The outputs of a head beyond its n bit logits: m bit logits, then K rows."""
        return self.num_bits + self.num_rows

    def forward(self, scores: Tensor, outputs: Tensor, signs: Tensor | None = None) -> Tensor:
        """Corrected scores `(…, V)`, in the dtype of `scores`, for the head's outputs `(…, m + K)` after the n bits.

        `signs` replace the extra symbols of the refinement.
        """
        bits, rows = outputs[..., : self.num_bits], outputs[..., self.num_bits :].to(scores.dtype)
        if self.refinement is not None:
            scores = self.refinement(scores, bits, signs)
        if self.token_bias is not None:
            scores = scores + self.token_bias.to(scores.dtype)
        return scores.index_add(-1, self.shortlist.long(), rows) if self.num_rows else scores  # ONNX takes int64 only

    def extra_repr(self) -> str:
        return f"dense_rows={self.num_rows}, token_bias={self.token_bias is not None}"


def choose_tokens(name: str, chosen: int | Sequence[int], counts: Tensor | None, num_classes: int) -> Tensor:
    """The token ids `(K,)` that an argument `name` means: those given, or the K most frequent of `counts` `(V,)`.

    Raises:
        ConfigurationError: an id is not a token or is given twice, or K is given without counts or is more than V.
    """
    if not isinstance(chosen, int):
        return _given(name, torch.as_tensor(chosen, dtype=torch.int64), num_classes)
    if not 0 <= chosen <= num_classes:
        raise ConfigurationError(f"{name}={chosen} is not between 0 and the number of tokens {num_classes}")
    if not chosen:
        return torch.empty(0, dtype=torch.int32)
    if counts is None:
        raise ConfigurationError(
            f"{name}={chosen} asks for the most frequent tokens: give statistics, with counts of how often each of the "
            f"{num_classes} tokens occurs in text like yours, or a list of token ids as {name}"
        )
    order = torch.sort(counts, descending=True, stable=True).indices
    return order[:chosen].to(torch.int32)


def _given(name: str, ids: Tensor, num_classes: int) -> Tensor:
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= num_classes):
        raise ConfigurationError(
            f"{name} holds ids from {int(ids.min())} to {int(ids.max())}; tokens are 0 … {num_classes - 1}"
        )
    if len(ids.unique()) != len(ids):
        raise ConfigurationError(f"{name} holds a token id twice; give every id once")
    return ids.to(torch.int32)
