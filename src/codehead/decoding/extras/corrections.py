"""What single tokens add to their scores: dense rows for some, a bias for every token.

A code of n columns gives scores of rank n. Dense rows lift that limit where it matters, for the K most frequent
tokens: each gets a bit logit of its own, added to its score. In the terms of ECOC these are K more ternary columns, +1
for one token and 0 for all others, read by their margin (`loss_linear`). Between the two lie longer codewords for
frequent tokens (`codehead.decoding.extras.extra_bits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from codehead.decoding.extras.extra_bits import Refinement
from codehead.errors import ConfigurationError


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
        """Corrected scores `(…, V)`, in the dtype of `scores`, for the further outputs `(…, m + K)` of the head.

        `signs` stand for the extra symbols, which are otherwise those of the refinement.
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
        ConfigurationError: an id is no token or is given twice, or K tokens are asked for without counts or beyond V.
    """
    if isinstance(chosen, bool) or not isinstance(chosen, int):
        return _given(name, chosen, num_classes)
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


def _given(name: str, chosen: Any, num_classes: int) -> Tensor:
    ids = _integers(chosen)
    if ids is None:
        raise ConfigurationError(f"{name}={chosen!r} is neither a number of tokens nor a list of token ids")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= num_classes):
        raise ConfigurationError(
            f"{name} holds ids from {int(ids.min())} to {int(ids.max())}; tokens are 0 … {num_classes - 1}"
        )
    if len(ids.unique()) != len(ids):
        raise ConfigurationError(f"{name} holds a token id twice; give every id once")
    return ids.to(torch.int32)


def _integers(values: Any) -> Tensor | None:
    """A list of whole numbers as a tensor `(K,)`; None if it is no such list."""
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    if not found.numel():  # an empty list is of no integer type
        found = found.long()
    if found.ndim != 1 or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        return None
    return found
