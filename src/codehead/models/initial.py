"""Where a new head starts: near the Softmax head that it replaces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codehead.errors import ConfigurationError
from codehead.heads.shortlist import ShortlistHead
from codehead.layer import Decision
from codehead.registry import did_you_mean

STARTS = ("random", "old_head")
RIDGE = 1e-6
"""Relative weight of |P|², so that columns that depend on each other are no obstacle."""


@torch.no_grad()
def initialise(start: str, old: nn.Linear, head: nn.Module, decision: Decision, counts: Tensor | None) -> None:
    """Give a fresh head and bias per token their first values.

    `start` is "random" (the head stays as it is; the bias is the log frequency of the tokens if `counts` `(V,)` are
    known, otherwise zero) or "old_head" (see `start_from`). ConfigurationError for another.
    """
    if start not in STARTS:
        hint = did_you_mean(start, STARTS) or "."
        raise ConfigurationError(f"unknown start {start!r}{hint} Known: {', '.join(STARTS)}")
    bias = None if decision.corrections is None else decision.corrections.token_bias
    if start == "old_head":
        start_from(old, head, decision, counts)
    elif bias is not None and counts is not None:
        bias.copy_(((counts + 1) / (counts + 1).sum()).log())


def start_from(old: nn.Linear, head: nn.Module, decision: Decision, counts: Tensor | None) -> None:
    """Set the weights of a new linear head so that its token scores are close to those of the `old` Softmax head.

    The scores of a binary code are `½ C P h`, so P `(n, hidden)` is the least-squares solution of `½ C P + 1 mᵀ = W`
    over the rows of the old weight W `(V, hidden)`, each weighted by the root of how often its token occurs (`counts`
    `(V,)`, otherwise equally); m, which adds the same to all scores, is dropped. The rows of a shortlist are what is
    left of theirs, the bias per token is that of the old head.

    Raises:
        ConfigurationError: the head is not linear, or the code is not a binary one that is written down.
    """
    bits = head.bits if isinstance(head, ShortlistHead) else head
    table, corrections = decision.table, decision.corrections
    if not isinstance(bits, nn.Linear) or table.is_ternary or table.is_implicit:
        raise ConfigurationError(
            "start='old_head' solves for a linear head and a binary code, whose scores are linear in the hidden state; "
            "choose head='linear' and such a code, or start='random'"
        )
    rows = old.weight.double()
    weights = torch.ones(len(rows)) if counts is None else (counts + 1).sqrt()
    if corrections is not None and corrections.num_rows < len(rows):
        weights[corrections.shortlist.long().cpu()] = 0  # what they are off by goes into rows of their own
    codewords = 0.5 * table.signs().to(rows)
    solution, common = _least_squares(codewords, rows, weights.to(rows))
    bits.weight.copy_(solution)
    if bits.bias is not None:
        bits.bias.zero_()
    if isinstance(head, ShortlistHead) and corrections is not None:
        head.rows.weight.copy_((rows - codewords @ solution - common)[corrections.shortlist.long()])
    if corrections is not None and corrections.token_bias is not None and old.bias is not None:
        corrections.token_bias.copy_(old.bias)


def _least_squares(codewords: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The P `(n, hidden)` and m `(1, hidden)` that minimise Σ_v weights_v · |codewords_v P + m − rows_v|²."""
    inputs = torch.cat([codewords, torch.ones_like(codewords[:, :1])], dim=1)
    weighted = inputs.T * weights
    ridge = RIDGE * weights.sum() * torch.eye(inputs.shape[1]).to(inputs)
    solution = torch.linalg.solve(weighted @ inputs + ridge, weighted @ rows)
    return solution[:-1], solution[-1:]
