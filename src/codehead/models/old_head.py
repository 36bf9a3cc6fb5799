"""What a new decision layer takes from the Softmax head that it replaces: extra bits, dense rows and a start.

The start is near the old head, by least squares over its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from codehead.codes import build
from codehead.codes.codebook import Codebook, PackedCodebook
from codehead.codes.design import minimal_length, whole_number
from codehead.codes.table import CodewordTable
from codehead.config import DecisionConfig
from codehead.decoding.extras import Corrections, ExtendedHead, Refinement, choose_tokens
from codehead.errors import CodebookError, ConfigurationError
from codehead.head_outputs import CorrectedBits
from codehead.heads.adaptive import AdaptiveHead
from codehead.heads.feedforward import LowRankHead
from codehead.layer import Decision
from codehead.models.hidden import PIECE, Statistics

DESIGN = "additive"
"""The design of the extra bits."""
SAMPLES = 512
"""Hidden states drawn to estimate the summed probability of a cluster of tokens."""
LISTED = 1e-6
"""The weight of a token with a dense row: small, but not zero in case all tokens have one."""
RIDGE = 1e-6
"""Relative weight of |P|², so that linearly dependent columns do no harm."""


@dataclass(frozen=True)
class OldHead:
    """A Softmax head with the statistics of a text, if there are any: which rows and directions matter."""

    weight: Tensor
    """`(V, hidden)`."""
    bias: Tensor | None
    """`(V,)`."""
    statistics: Statistics | None

    @classmethod
    def of(cls, head: nn.Linear, statistics: Statistics | None) -> OldHead:
        """The head of a model; ConfigurationError if the statistics are those of another model."""
        num_classes, hidden_size = head.weight.shape
        if not isinstance(statistics, Statistics | None):
            raise ConfigurationError(
                f"statistics is {type(statistics).__name__}; give codehead.models.hidden.Statistics"
            )
        if statistics is not None and len(statistics.counts) != num_classes:
            raise ConfigurationError(
                f"statistics hold counts of {len(statistics.counts)} tokens, but the output embedding of the model has "
                f"{num_classes} rows; count with the model's own tokenizer"
            )
        if statistics is not None and statistics.mean is not None and len(statistics.mean) != hidden_size:
            raise ConfigurationError(
                f"statistics are of hidden states of size {len(statistics.mean)}, but those of the model have "
                f"{hidden_size}; measure them on this model"
            )
        return cls(head.weight.detach(), None if head.bias is None else head.bias.detach(), statistics)

    def part(self, ids: Tensor) -> OldHead:
        """The head of some of the tokens."""
        seen = None if self.statistics is None else replace(self.statistics, counts=self.statistics.counts[ids.cpu()])
        return OldHead(self.weight[ids], None if self.bias is None else self.bias[ids], seen)

    @property
    def counts(self) -> Tensor | None:
        """How often every token occurs, `(V,)`; None if unknown."""
        return None if self.statistics is None else self.statistics.counts

    @property
    def biases(self) -> Tensor:
        """The bias `(V,)` in float64, zero where there is none."""
        bias = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
        return bias.double()

    @property
    def mean(self) -> Tensor:
        """The mean hidden state `(hidden,)`, float64; zero if unknown."""
        known = None if self.statistics is None else self.statistics.mean
        mean = torch.zeros(self.weight.shape[1]) if known is None else known
        return mean.to(self.weight.device, torch.float64)

    @property
    def root(self) -> Tensor:
        """The square root of the covariance `(hidden, hidden)`, float64; the identity if unknown."""
        known = self.statistics is not None and self.statistics.covariance is not None
        root = self.statistics.root if known else torch.eye(self.weight.shape[1])  # type: ignore[union-attr]
        return root.to(self.weight.device, torch.float64)

    def token_weights(self, listed: Tensor | None = None) -> Tensor:
        """The weight of every token, float64 `(V,)`, on the device of the head: its count plus one.

        The `listed` tokens `(K,)`, which have dense rows, have next to no weight.
        """
        counts = torch.zeros(len(self.weight)) if self.counts is None else self.counts
        weights = (counts + 1).to(self.weight.device, torch.float64)
        return weights if listed is None else weights.index_fill(0, listed.to(weights.device, torch.int64), LISTED)

    def mean_row(self) -> Tensor:
        """The mean of the rows `(hidden,)`, weighted by `token_weights`, float64."""
        weights = self.token_weights()
        return torch.stack([w @ rows.double() for w, rows in pieces(weights, self.weight)]).sum(0) / weights.sum()

    def require_weights(self, argument: str, remedy: str) -> None:
        """Raise ConfigurationError, which names the `argument` that needs the weight, if it is on the meta device."""
        if self.weight.is_meta:
            raise ConfigurationError(
                f"{argument} looks at the rows of the model's Softmax head, which is on the meta device; {remedy}, or "
                "load the weights first"
            )

    def rows(self, argument: str, remedy: str) -> Tensor:
        """The weight in float32 on the CPU, times the root of the covariance if there are statistics.

        ConfigurationError, which names the `argument` that needs it and the `remedy`, if it is on the meta device.
        """
        self.require_weights(argument, remedy)
        return self.weight.float().cpu() if self.statistics is None else self.statistics.seen(self.weight)


def check_extras(config: DecisionConfig, counts: Tensor) -> None:
    """Raise the ConfigurationError that building the layer would raise, as far as counts `(V,)` show, but early."""
    listed = choose_tokens("dense_rows", config.dense_rows, counts, len(counts))
    longer = choose_tokens("extra_bit_tokens", config.extra_bit_tokens, counts, len(counts))
    _check_extra_bits(longer, config.extra_bits)
    if config.token_bias or len(listed) or len(longer):
        CorrectedBits.check_loss(config.loss)
        CorrectedBits.check_decoder(config.decoder)


def weights_of_tokens(config: DecisionConfig, old: OldHead) -> Tensor | None:
    """The weight `(V,)` of every token for a code, float64; None if all are equal.

    ConfigurationError as `build_extras` raises it for dense rows.
    """
    listed = _listed(config, old)
    return old.token_weights(listed) if old.statistics is not None or len(listed) else None


def build_extras(config: DecisionConfig, codebook: Codebook, old: OldHead) -> Corrections | None:
    """The per-token extras beside a codebook, in the dtype of the `old` Softmax head; None if there are none.

    ConfigurationError if tokens are given by number without statistics, or the code cannot have extra bits.
    """
    listed = _listed(config, old)
    refinement = _extra_bits(config, codebook, old, listed)
    if not len(listed) and refinement is None and not config.token_bias:
        return None
    return Corrections(codebook.num_classes, listed, config.token_bias, refinement).to(old.weight)


def _listed(config: DecisionConfig, old: OldHead) -> Tensor:
    return choose_tokens("dense_rows", config.dense_rows, old.counts, len(old.weight))


@torch.no_grad()
def _extra_bits(config: DecisionConfig, codebook: Codebook, old: OldHead, listed: Tensor) -> Refinement | None:
    """The extra symbols of some tokens, or None if there are none.

    An additive code of the rows of the `old` Softmax head, minus their best fit by a linear head with the codebook.
    With statistics, the rows are multiplied by the root of the covariance and weighted by the counts; the `listed`
    tokens, which have dense rows, have next to no weight.
    """
    chosen = choose_tokens("extra_bit_tokens", config.extra_bit_tokens, old.counts, codebook.num_classes)
    ids = chosen.long().sort().values
    if not len(ids):
        return None
    if not isinstance(codebook, PackedCodebook) or codebook.is_ternary:
        raise ConfigurationError(
            f"extra_bits makes the codewords of a binary code longer, but {codebook.design!r} is not one; choose "
            "another code, or omit extra_bits"
        )
    old.require_weights(f"extra_bits={config.extra_bits}", "omit extra_bits")
    _check_extra_bits(ids, config.extra_bits)
    weights = old.token_weights(listed)
    rows = _left_over(codebook, old, weights, ids.to(old.weight.device))
    seen = rows if old.statistics is None else old.statistics.seen(rows)
    importance = weights[ids.to(weights.device)].cpu().numpy()
    options: dict[str, Any] = {"prototypes": seen.cpu().numpy(), "weights": importance}
    try:
        code = build(DESIGN, len(ids), bits=config.extra_bits, seed=config.seed, **options)
    except CodebookError as error:
        raise ConfigurationError(f"extra_bits={config.extra_bits} of {len(ids)} tokens: {error}") from error
    assert isinstance(code, PackedCodebook)
    return Refinement.of(codebook.num_classes, ids, torch.from_numpy(code.sign_plane.copy()), config.extra_bits)


def _check_extra_bits(ids: Tensor, length: int) -> None:
    """Raise ConfigurationError if `ids` `(K,)` is a single token, or `length` symbols cannot tell the tokens apart."""
    if len(ids) == 1:
        raise ConfigurationError(
            f"extra_bit_tokens={ids.tolist()} is one token, for which a dense row is smaller; use dense_rows"
        )
    if len(ids):
        whole_number("extra_bits", length, minimal_length(len(ids)))


def _left_over(codebook: Codebook, old: OldHead, weights: Tensor, ids: Tensor) -> Tensor:
    """The old rows of some tokens `(K, hidden)` in float32, minus their rows in the best fit `½ C P + 1 mᵀ` to all."""
    codewords = 0.5 * CodewordTable(codebook).signs().to(old.weight.device)
    solution, common = least_squares(codewords, old.weight, weights)
    return old.weight[ids].float() - codewords[ids] @ solution.float() - common.float()


@torch.no_grad()
def initialise(start: str, old: OldHead, head: nn.Module, decision: Decision, scale: float) -> None:
    """Give a fresh head and bias per token their first values.

    `start` is "random" (the head keeps its values; the bias is the log frequency of the tokens if there are statistics,
    otherwise zero) or "old_head" (see `start_from`). With either, statistics give an adaptive softmax the order of the
    tokens. The model multiplies the outputs of its head by `scale`, but not the extras added to them.
    """
    if isinstance(head, AdaptiveHead) and old.counts is not None:
        head.sort_by(old.counts)
    corrections = decision.corrections
    if start == "old_head":
        start_from(old, head, decision, scale)
    elif corrections is not None and corrections.token_bias is not None and old.counts is not None:
        corrections.token_bias.copy_(((old.counts + 1) / (old.counts + 1).sum()).log())


def start_from(old: OldHead, head: nn.Module, decision: Decision, scale: float) -> None:
    """Set the weights of a new head so that its token scores are close to those of the `old` Softmax head.

    This works for a linear head with a binary code, a low-rank head with one_vs_all, whose scores are linear in the
    hidden state, and an adaptive softmax, which consists of such heads; a linear head with one_vs_all is the old one,
    and gets its rows. The error in every row of the old weight W `(V, hidden)` is weighted by the count of its token
    (without statistics, equally), and a part common to all rows does not count. The bias of the old head, and the mean
    error of a token's scores, go into the bias per token if there is one, times the `scale` by which the model
    multiplies the outputs of its head.

    Raises:
        ConfigurationError: for any other head or code, or if the old bias has no place.
    """
    bits = head.bits if isinstance(head, ExtendedHead) else head
    table = decision.table
    _refuse_lost_bias(old, bits, decision)
    if isinstance(bits, LowRankHead) and table.is_implicit:
        _start_low_rank(old, bits)
    elif isinstance(bits, AdaptiveHead):
        _start_adaptive(old, bits)
    elif isinstance(bits, nn.Linear) and table.is_implicit:
        bits.weight.copy_(old.weight)
        if bits.bias is not None:
            bits.bias.copy_(old.biases)
    elif isinstance(bits, nn.Linear) and not table.is_ternary:
        _start_linear(old, head, bits, decision, scale)
    else:
        raise ConfigurationError(
            "start='old_head' solves for a linear head and a binary code or one_vs_all, or a low_rank head and "
            "one_vs_all, whose scores are linear in the hidden state, or an adaptive head; choose those, or "
            "start='random'"
        )


def _refuse_lost_bias(old: OldHead, head: nn.Module, decision: Decision) -> None:
    """Raise ConfigurationError if the old head has a bias, but neither decision layer nor head has one per token."""
    corrected = decision.corrections is not None and decision.corrections.token_bias is not None
    own = getattr(head, "output_bias" if isinstance(head, LowRankHead) else "bias", None) is not None
    if old.bias is None or corrected or (decision.table.is_implicit and own):
        return
    remedy = "head_params={'bias': True}" if decision.table.is_implicit else "token_bias=True"
    raise ConfigurationError(
        f"the old head has a bias, which start='old_head' has no place for; give {remedy}, or start='random'"
    )


def _start_linear(old: OldHead, head: nn.Module, bits: nn.Linear, decision: Decision, scale: float) -> None:
    """The least-squares solution P `(n, hidden)` of `½ C P + 1 mᵀ = W`.

    Its residual goes into the dense rows, and the residual's mean score into the bias. P does not depend on the
    covariance of the hidden states, because every direction has its own column of P.
    """
    corrections, codewords = decision.corrections, decision.table.signs()
    if corrections is not None and corrections.refinement is not None:
        codewords = corrections.refinement.spread(codewords)
    codewords = 0.5 * codewords
    weights = old.token_weights(None if corrections is None else corrections.shortlist)
    solution, common = least_squares(codewords, old.weight, weights)
    bits.weight.copy_(solution[: len(bits.weight)])
    if bits.bias is not None:
        bits.bias.zero_()
    if corrections is None:
        return
    listed = corrections.shortlist.long()
    if isinstance(head, ExtendedHead):
        rows = old.weight[listed].double() - codewords[listed].double() @ solution - common
        head.rows.weight.copy_(torch.cat([solution[len(solution) - corrections.num_bits :], rows]))
    if corrections.token_bias is not None:
        mean = old.mean
        missing = _scores(old.weight, mean) - _scores(codewords, solution @ mean) - common @ mean
        corrections.token_bias.copy_(scale * (old.biases + missing.index_fill(0, listed, 0)))


def _start_low_rank(old: OldHead, head: LowRankHead) -> None:
    """The map of the head's rank that keeps most of the scores: leading right singular vectors of (W − 1 mᵀ) Σ½."""
    common, root = old.mean_row(), old.root
    scatter = torch.zeros_like(root)
    for w, rows in pieces(old.token_weights(), old.weight):
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
        mean = old.mean
        missing = _scores(old.weight, mean) - common @ mean - _scores(head.output_weight, down @ mean)
        head.output_bias.copy_(old.biases + missing)


def _start_adaptive(old: OldHead, head: AdaptiveHead) -> None:
    """Frequent tokens keep their rows; every cluster starts as a low-rank head, and its row as its tokens' log-sum."""
    frequent, *clusters = head.parts()
    head.weight[: len(frequent)] = old.weight[frequent]
    if head.bias is not None:
        head.bias.zero_()
        head.bias[: len(frequent)] = old.biases[frequent].to(head.bias)
    for row, (tail, ids) in enumerate(zip(head.tail, clusters, strict=True), start=len(frequent)):
        part = old.part(ids)
        assert isinstance(tail, LowRankHead)
        _start_low_rank(part, tail)
        slope, constant = _sum_of(part)
        if head.bias is not None:
            head.bias[row] = constant
        else:
            slope = slope + constant * _one(part)
        head.weight[row] = slope


def _sum_of(old: OldHead) -> tuple[Tensor, Tensor]:
    """The row r `(hidden,)` and constant c whose `r · h + c` is near log Σ exp(scores), in float64.

    The row is the mean of the tokens' rows, weighted by their counts; the constant is its mean error over normally
    distributed hidden states with the measured mean and covariance (otherwise 0 and 1, as after a normalisation).
    """
    slope = old.mean_row()
    noise = torch.randn(SAMPLES, len(slope), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden = old.mean + noise.to(slope) @ old.root
    sums = [(hidden @ rows.double().T + bias).logsumexp(-1) for rows, bias in pieces(old.weight, old.biases)]
    return slope, (torch.stack(sums).logsumexp(0) - hidden @ slope).mean()


def _one(old: OldHead) -> Tensor:
    """The row `(hidden,)` whose scores are nearest to 1, for a head without a bias."""
    return torch.linalg.pinv(old.root @ old.root + torch.outer(old.mean, old.mean), hermitian=True) @ old.mean


def _scores(rows: Tensor, vector: Tensor) -> Tensor:
    """rows `(V, m)` times a float64 vector `(m,)`: `(V,)`."""
    return torch.cat([some.double() @ vector for (some,) in pieces(rows)])


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


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching rows of tensors `(V, …)`, a piece at a time: in float64 a whole head would take gigabytes."""
    return zip(*(tensor.split(PIECE) for tensor in tensors), strict=True)
