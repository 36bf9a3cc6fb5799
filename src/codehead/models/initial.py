"""Where a new head starts: near the Softmax head that it replaces, by least squares over the rows of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from codehead.decoding.extras import Corrections, ShortlistHead
from codehead.errors import ConfigurationError
from codehead.heads.adaptive import AdaptiveHead
from codehead.heads.feedforward import LowRankHead
from codehead.layer import Decision
from codehead.models.hidden import PIECE, Statistics
from codehead.models.probe import LogitScaling

SAMPLES = 512
"""Hidden states drawn to see how much a cluster of tokens adds up to."""


@torch.no_grad()
def initialise(
    start: str, old: nn.Linear, head: nn.Module, decision: Decision, statistics: Statistics | None, tail: LogitScaling
) -> None:
    """Give a fresh head and bias per token their first values.

    `start` is "random" (the head stays as it is; the bias is the log frequency of the tokens if there are statistics,
    otherwise zero) or "old_head" (see `start_from`). With either, statistics tell an adaptive softmax the order of the
    tokens. `tail` is what the model does to the outputs of its head, and so not to
    what is added to them.
    """
    if isinstance(head, AdaptiveHead) and statistics is not None:
        head.sort_by(statistics.counts)
    if start == "old_head":
        start_from(old, head, decision, statistics, tail)
    elif decision.corrections is not None and statistics is not None:
        _start_biases(decision.corrections, statistics)


def _start_biases(corrections: Corrections, statistics: Statistics) -> None:
    """The log frequencies of the tokens."""
    if corrections.token_bias is not None:
        frequencies = (statistics.counts + 1) / (statistics.counts + 1).sum()
        corrections.token_bias.copy_(frequencies.log())


def start_from(
    old: nn.Linear,
    head: nn.Module,
    decision: Decision,
    statistics: Statistics | None,
    tail: LogitScaling,
) -> None:
    """Set the weights of a new head so that its token scores are close to those of the `old` Softmax head.

    A linear head with a binary code, or a low-rank head with one_vs_all, whose scores are linear in the hidden state,
    or an adaptive softmax, which is made of such heads; a linear head with one_vs_all is the old one, and gets its
    rows. The error in every row of the old weight W `(V, hidden)` counts as often as its token occurs (without
    statistics, equally), and what is the same for all rows does not count. The bias of the old head, and what the
    scores of a token are short of in the mean, go into the bias per token where there is one, times what the `tail` of
    the model multiplies the outputs of its head by.

    Raises:
        ConfigurationError: the head or the code is another, or the old bias has no place.
    """
    bits = head.bits if isinstance(head, ShortlistHead) else head
    table = decision.table
    _refuse_lost_bias(old, bits, decision)
    if isinstance(bits, LowRankHead) and table.is_implicit:
        _start_low_rank(old, bits, statistics)
    elif isinstance(bits, AdaptiveHead):
        _start_adaptive(old, bits, statistics)
    elif isinstance(bits, nn.Linear) and table.is_implicit:
        _copy(old, bits)
    elif isinstance(bits, nn.Linear) and not table.is_ternary:
        _start_linear(old, head, bits, decision, statistics, tail)
    else:
        raise ConfigurationError(
            "start='old_head' solves for a linear head and a binary code or one_vs_all, or a low_rank head and "
            "one_vs_all, whose scores are linear in the hidden state, or an adaptive head; choose those, or "
            "start='random'"
        )


def _refuse_lost_bias(old: nn.Linear, head: nn.Module, decision: Decision) -> None:
    """Raise ConfigurationError if the old head has a bias, and neither decision layer nor new head one per token."""
    corrected = decision.corrections is not None and decision.corrections.token_bias is not None
    own = getattr(head, "output_bias" if isinstance(head, LowRankHead) else "bias", None) is not None
    if old.bias is None or corrected or (decision.table.is_implicit and own):
        return
    remedy = "head_params={'bias': True}" if decision.table.is_implicit else "token_bias=True"
    raise ConfigurationError(
        f"the old head has a bias, which start='old_head' has no place for; give {remedy}, or start='random'"
    )


def _copy(old: nn.Linear, head: nn.Linear) -> None:
    head.weight.copy_(old.weight)
    if head.bias is not None:
        head.bias.copy_(torch.zeros_like(head.bias) if old.bias is None else old.bias)


def _start_linear(
    old: nn.Linear,
    head: nn.Module,
    bits: nn.Linear,
    decision: Decision,
    statistics: Statistics | None,
    tail: LogitScaling,
) -> None:
    """The least-squares solution P `(n, hidden)` of `½ C P + 1 mᵀ = W`; a shortlist's rows are what is left of theirs.

    P is the same whatever the covariance of the hidden states, because every direction has a column of P to itself.
    """
    corrections, codewords = decision.corrections, decision.table.signs()
    if corrections is not None and corrections.refinement is not None:
        codewords = corrections.refinement.spread(codewords)
    codewords = 0.5 * codewords
    weights = token_weights(old, statistics, None if corrections is None else corrections.shortlist)
    solution, common = least_squares(codewords, old.weight, weights)
    bits.weight.copy_(solution[: len(bits.weight)])
    if bits.bias is not None:
        bits.bias.zero_()
    if corrections is not None:
        _correct(corrections, head, old, codewords, solution, common, statistics, tail)


def _correct(
    corrections: Corrections,
    head: nn.Module,
    old: nn.Linear,
    codewords: Tensor,
    solution: Tensor,
    common: Tensor,
    statistics: Statistics | None,
    tail: LogitScaling,
) -> None:
    """Put what the code leaves of the old rows into the rows of the shortlist, its mean score into the bias."""
    listed = corrections.shortlist.long()
    if isinstance(head, ShortlistHead):
        rows = old.weight[listed].double() - codewords[listed].double() @ solution - common
        head.rows.weight.copy_(torch.cat([solution[len(solution) - corrections.num_bits :], rows]))
    if corrections.token_bias is not None:
        mean = _mean(statistics, solution)
        missing = _scores(old.weight, mean) - _scores(codewords, solution @ mean) - common @ mean
        corrections.token_bias.copy_(tail.scale * (_old_bias(old) + missing.index_fill(0, listed, 0)))


def _start_low_rank(old: nn.Linear, head: LowRankHead, statistics: Statistics | None) -> None:
    """The map of that rank which keeps most of the scores: the leading right singular vectors of (W − 1 mᵀ) Σ½."""
    weights, hidden_size = token_weights(old, statistics), old.weight.shape[1]
    common = torch.stack([w @ rows.double() for w, rows in pieces(weights, old.weight)]).sum(0) / weights.sum()
    root = _root(statistics, common)
    scatter = torch.zeros(hidden_size, hidden_size).to(common)
    for w, rows in pieces(weights, old.weight):
        seen = (rows.double() - common) @ root
        scatter += seen.T @ (w.unsqueeze(1) * seen)
    directions = torch.linalg.eigh(scatter).eigenvectors.flip(1)[:, : head.rank]  # a rank beyond hidden is left unused
    down, up = directions.T @ torch.linalg.pinv(root, hermitian=True), root @ directions
    head.weight.zero_()
    head.output_weight.zero_()
    head.weight[: len(down)] = down.to(head.weight)
    head.output_weight[:, : len(down)] = torch.cat(
        [(rows.double() - common) @ up for (rows,) in pieces(old.weight)]
    ).to(head.output_weight)
    if head.output_bias is not None:
        mean = _mean(statistics, common)
        missing = _scores(old.weight, mean) - common @ mean - _scores(head.output_weight, down @ mean)
        head.output_bias.copy_(_old_bias(old) + missing)


def _start_adaptive(old: nn.Linear, head: AdaptiveHead, statistics: Statistics | None) -> None:
    """Frequent tokens keep their rows; every cluster starts as a head of low rank, and its own row as their sum."""
    frequent, *clusters = head.parts()
    head.weight[: len(frequent)] = old.weight[frequent]
    if head.bias is not None:
        head.bias.zero_()
        head.bias[: len(frequent)] += 0.0 if old.bias is None else old.bias[frequent]
    for row, (tail, ids) in enumerate(zip(head.tail, clusters, strict=True), start=len(frequent)):
        part = _part(old, ids)
        seen = None if statistics is None else replace(statistics, counts=statistics.counts[ids.cpu()])
        assert isinstance(tail, LowRankHead)
        _start_low_rank(part, tail, seen)
        slope, constant = _sum_of(part, seen)
        if head.bias is not None:
            head.bias[row] = constant
        else:
            slope = slope + constant * _one(seen, slope)
        head.weight[row] = slope


def _part(old: nn.Linear, ids: Tensor) -> nn.Linear:
    """The head of some of the tokens."""
    part = nn.Linear(old.weight.shape[1], len(ids), bias=old.bias is not None, device="meta")
    part.weight = nn.Parameter(old.weight[ids])
    if old.bias is not None:
        part.bias = nn.Parameter(old.bias[ids])
    return part


def _sum_of(old: nn.Linear, statistics: Statistics | None) -> tuple[Tensor, Tensor]:
    """The row r `(hidden,)` and constant c whose `r · h + c` is near log Σ exp(scores), in float64.

    The row is the mean of the tokens' by their counts; the constant is what it is short of in the mean over normally
    distributed hidden states, of the mean and covariance that were seen (otherwise 0 and 1, as after a normalisation).
    """
    weights = token_weights(old, statistics)
    slope = torch.stack([w @ rows.double() for w, rows in pieces(weights, old.weight)]).sum(0) / weights.sum()
    noise = torch.randn(SAMPLES, len(slope), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden = _mean(statistics, slope) + noise.to(slope) @ _root(statistics, slope)
    biases = _old_bias(old) + torch.zeros_like(weights)
    sums = [(hidden @ rows.double().T + bias).logsumexp(-1) for rows, bias in pieces(old.weight, biases)]
    return slope, (torch.stack(sums).logsumexp(0) - hidden @ slope).mean()


def _one(statistics: Statistics | None, like: Tensor) -> Tensor:
    """The row `(hidden,)` whose scores come nearest to 1, for a head without a bias."""
    mean, root = _mean(statistics, like), _root(statistics, like)
    return torch.linalg.pinv(root @ root + torch.outer(mean, mean), hermitian=True) @ mean


def _mean(statistics: Statistics | None, like: Tensor) -> Tensor:
    """The mean hidden state `(hidden,)`, zero if it is not known."""
    known = statistics is not None and statistics.mean is not None
    return statistics.mean.to(like) if known else torch.zeros(like.shape[-1]).to(like)  # type: ignore[union-attr]


def _root(statistics: Statistics | None, like: Tensor) -> Tensor:
    """The square root of the covariance `(hidden, hidden)`, the identity if it is not known."""
    known = statistics is not None and statistics.covariance is not None
    root = statistics.root if known else torch.eye(like.shape[-1])  # type: ignore[union-attr]
    return root.to(like)


def _old_bias(old: nn.Linear) -> Tensor | float:
    return 0.0 if old.bias is None else old.bias.double()


def _scores(rows: Tensor, vector: Tensor) -> Tensor:
    """rows `(V, m)` times a float64 vector `(m,)`: `(V,)`."""
    return torch.cat([some.double() @ vector for (some,) in pieces(rows)])


LISTED = 1e-6
"""The weight of a token that has a row of its own: enough to tell it from the others if all have."""
RIDGE = 1e-6
"""Relative weight of |P|², so that columns that depend on each other are no obstacle."""


def least_squares(codewords: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The P `(n, hidden)` and m `(hidden,)` that minimise Σ_v weights_v · |codewords_v P + m − rows_v|², in float64."""
    size = codewords.shape[1] + 1
    square = RIDGE * weights.sum() * torch.eye(size).to(weights)
    target = torch.zeros(size, rows.shape[1]).to(weights)
    for w, some, wanted in pieces(weights, codewords, rows):
        inputs = torch.cat([some.double(), torch.ones(len(some), 1).to(weights)], dim=1)
        square += inputs.T @ (w.unsqueeze(1) * inputs)
        target += inputs.T @ (w.unsqueeze(1) * wanted.double())
    solution = torch.linalg.solve(square, target)
    return solution[:-1], solution[-1]


def token_weights(old: nn.Linear, statistics: Statistics | None, listed: Tensor | None = None) -> Tensor:
    """How much every token counts, float64 `(V,)`, on the device of the head: one more than it occurs.

    Those `listed` `(K,)`, which have rows of their own, count next to nothing.
    """
    counts = torch.zeros(len(old.weight)) if statistics is None else statistics.counts
    weights = (counts + 1).to(old.weight.device, torch.float64)
    return weights if listed is None else weights.index_fill(0, listed.to(weights.device, torch.int64), LISTED)


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching rows of tensors `(V, …)`, some at a time: in float64 a whole head would take gigabytes."""
    return zip(*(tensor.split(PIECE) for tensor in tensors), strict=True)
