"""The further symbols of the most frequent tokens: a code of what the code of all tokens leaves of the old head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codehead.codes import build
from codehead.codes.codebook import Codebook, PackedCodebook
from codehead.codes.design import minimal_length, whole_number
from codehead.codes.table import CodewordTable
from codehead.decoding.corrections import choose_tokens
from codehead.decoding.refinement import Refinement
from codehead.errors import CodebookError, ConfigurationError
from codehead.models.hidden import Statistics
from codehead.models.least_squares import least_squares, token_weights

DESIGN = "additive"


@torch.no_grad()
def refine(
    codebook: Codebook,
    old: nn.Linear,
    tokens: int | Sequence[int],
    length: int,
    statistics: Statistics | None,
    seed: int,
    listed: Tensor | None = None,
) -> Refinement | None:
    """`length` further symbols for some tokens, or None if `tokens` are none.

    An additive code of the rows of the `old` Softmax head, less what a linear head with the codebook can make of them.
    With statistics the rows are as the hidden states see them, weighted by the counts; the `listed` tokens, which have
    rows of their own, count next to nothing.

    Raises:
        ConfigurationError: the code is ternary or one_vs_all, `tokens` are no tokens, there are fewer than 2, or the
            bits do not give them different symbols.
    """
    counts = None if statistics is None else statistics.counts
    ids = choose_tokens("refined", tokens, counts, codebook.num_classes).long().sort().values
    if not len(ids):
        return None
    if not isinstance(codebook, PackedCodebook) or codebook.is_ternary:
        raise ConfigurationError(
            f"refined makes the codewords of a binary code longer, and {codebook.design!r} is none; choose another "
            "code, or leave refined away"
        )
    if old.weight.is_meta:
        raise ConfigurationError(
            f"refined={tokens!r} looks at the rows of the model's Softmax head, which is on the meta device; load the "
            "weights first, or leave refined away"
        )
    check_refined(ids, length)
    weights = token_weights(old, statistics, listed)
    rows = _left_over(codebook, old, weights, ids.to(old.weight.device))
    seen = rows if statistics is None else statistics.seen(rows)
    importance = weights[ids.to(weights.device)].cpu().numpy()
    try:
        code = build(DESIGN, len(ids), bits=length, seed=seed, prototypes=seen.cpu().numpy(), weights=importance)
    except CodebookError as error:
        raise ConfigurationError(f"refined_bits={length} of {len(ids)} tokens: {error}") from error
    assert isinstance(code, PackedCodebook)
    return Refinement.of(codebook.num_classes, ids, torch.from_numpy(code.sign_plane.copy()), length)


def check_refined(ids: Tensor, length: int) -> None:
    """Raise ConfigurationError if the tokens `ids` `(K,)` are one, or `length` symbols cannot tell them apart."""
    if len(ids) == 1:
        raise ConfigurationError(f"refined={ids.tolist()} is one token, whose dense row is smaller; use shortlist")
    if len(ids):
        whole_number("refined_bits", length, minimal_length(len(ids)))


def _left_over(codebook: Codebook, old: nn.Linear, weights: Tensor, ids: Tensor) -> Tensor:
    """The old rows of some tokens `(K, hidden)` in float32, less the nearest that `½ C P + 1 mᵀ` comes to all rows."""
    codewords = 0.5 * CodewordTable(codebook).signs().to(old.weight.device)
    solution, common = least_squares(codewords, old.weight, weights)
    return old.weight[ids].float() - codewords[ids] @ solution.float() - common.float()
