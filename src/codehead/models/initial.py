"""Where a new head starts: near the Softmax head that it replaces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codehead.decoding.corrections import Corrections
from codehead.errors import ConfigurationError
from codehead.heads.low_rank import LowRankHead
from codehead.heads.shortlist import ShortlistHead
from codehead.layer import Decision
from codehead.models.hidden import Statistics
from codehead.registry import did_you_mean

STARTS = ("random", "old_head")
RIDGE = 1e-6
"""Relative weight of |P|², so that columns that depend on each other are no obstacle."""


@torch.no_grad()
def initialise(start: str, old: nn.Linear, head: nn.Module, decision: Decision, statistics: Statistics | None) -> None:
    """Give a fresh head and bias per token their first values.

    `start` is "random" (the head stays as it is; the bias is the log frequency of the tokens if there are statistics,
    otherwise zero) or "old_head" (see `start_from`). ConfigurationError for another.
    """
    if start not in STARTS:
        hint = did_you_mean(start, STARTS) or "."
        raise ConfigurationError(f"unknown start {start!r}{hint} Known: {', '.join(STARTS)}")
    bias = None if decision.corrections is None else decision.corrections.token_bias
    if start == "old_head":
        start_from(old, head, decision, statistics)
    elif bias is not None and statistics is not None:
        frequencies = statistics.counts + 1
        bias.copy_((frequencies / frequencies.sum()).log())


def start_from(old: nn.Linear, head: nn.Module, decision: Decision, statistics: Statistics | None) -> None:
    """Set the weights of a new head so that its token scores are close to those of the `old` Softmax head.

    A linear head with a binary code, or a low-rank head with one_vs_all, whose scores are linear in the hidden state.
    The error in every row of the old weight W `(V, hidden)` counts as often as its token occurs (without statistics,
    equally), and what is the same for all rows does not count. The bias of the old head, and what the scores of a token
    are short of in the mean, go into the bias per token where there is one.

    Raises:
        ConfigurationError: the head or the code is another.
    """
    bits = head.bits if isinstance(head, ShortlistHead) else head
    table = decision.table
    if isinstance(bits, LowRankHead) and table.is_implicit:
        _start_low_rank(old, bits, statistics)
    elif isinstance(bits, nn.Linear) and not table.is_ternary and not table.is_implicit:
        _start_linear(old, head, bits, decision, statistics)
    else:
        raise ConfigurationError(
            "start='old_head' solves for a linear head and a binary code, or a low_rank head and one_vs_all, whose "
            "scores are linear in the hidden state; choose those, or start='random'"
        )


def _start_linear(
    old: nn.Linear, head: nn.Module, bits: nn.Linear, decision: Decision, statistics: Statistics | None
) -> None:
    """The least-squares solution P `(n, hidden)` of `½ C P + 1 mᵀ = W`; a shortlist's rows are what is left of theirs.

    P is the same whatever the covariance of the hidden states, because every direction has a column of P to itself.
    """
    rows, corrections = old.weight.double(), decision.corrections
    weights = torch.ones(len(rows)) if statistics is None else statistics.counts + 1
    if corrections is not None and corrections.num_rows < len(rows):
        weights = weights.index_fill(0, corrections.shortlist.long().cpu(), 0)  # theirs goes into rows of their own
    codewords = 0.5 * decision.table.signs().to(rows)
    solution, common = _least_squares(codewords, rows, weights.to(rows))
    bits.weight.copy_(solution)
    if bits.bias is not None:
        bits.bias.zero_()
    if corrections is not None:
        _correct(corrections, head, old, rows - codewords @ solution - common, statistics)


def _start_low_rank(old: nn.Linear, head: LowRankHead, statistics: Statistics | None) -> None:
    """The map of that rank which keeps most of the scores: a truncated singular value decomposition of W Σ½."""
    rows = old.weight.double()
    weights = (torch.ones(len(rows)) if statistics is None else statistics.counts + 1).to(rows)
    common = (weights @ rows / weights.sum()).unsqueeze(0)
    has_spread = statistics is not None and statistics.covariance is not None
    root = statistics.root().to(rows) if has_spread else torch.eye(rows.shape[1]).to(rows)  # type: ignore[union-attr]
    seen = (rows - common) @ root
    directions = torch.linalg.svd(weights.sqrt().unsqueeze(1) * seen, full_matrices=False).Vh[: head.rank]
    kept = torch.zeros(head.rank, len(rows)).to(rows)
    kept[: len(directions)] = directions @ seen.T  # a rank beyond that of W leaves rows of zeros
    head.output_weight.copy_(kept.T)
    head.weight.zero_()
    head.weight[: len(directions)] = (directions @ torch.linalg.pinv(root, hermitian=True)).to(head.weight)
    if head.output_bias is not None:
        left = rows - common - head.output_weight.double() @ head.weight.double()
        head.output_bias.copy_(_mean_scores(left, old, statistics))


def _correct(
    corrections: Corrections, head: nn.Module, old: nn.Linear, left: Tensor, statistics: Statistics | None
) -> None:
    """Put what is `left` of the old rows `(V, hidden)` into the rows of the shortlist, its mean score into the bias."""
    listed = corrections.shortlist.long()
    if isinstance(head, ShortlistHead):
        head.rows.weight.copy_(left[listed])
    if corrections.token_bias is not None:
        corrections.token_bias.copy_(_mean_scores(left.index_fill(0, listed, 0), old, statistics))


def _mean_scores(left: Tensor, old: nn.Linear, statistics: Statistics | None) -> Tensor:
    """The bias of the old head, and the mean scores `(V,)` of what is `left` of its rows."""
    bias = torch.zeros(len(left)).to(left) if old.bias is None else old.bias.to(left)
    return bias if statistics is None or statistics.mean is None else bias + left @ statistics.mean.to(left)


def _least_squares(codewords: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The P `(n, hidden)` and m `(1, hidden)` that minimise Σ_v weights_v · |codewords_v P + m − rows_v|²."""
    inputs = torch.cat([codewords, torch.ones_like(codewords[:, :1])], dim=1)
    weighted = inputs.T * weights
    ridge = RIDGE * weights.sum() * torch.eye(inputs.shape[1]).to(inputs)
    solution = torch.linalg.solve(weighted @ inputs + ridge, weighted @ rows)
    return solution[:-1], solution[-1:]
