"""The adaptive softmax as a head: rows for frequent tokens, clusters of low rank for the others.

É. Grave, A. Joulin, M. Cissé, D. Grangier, H. Jégou (2017), "Efficient softmax approximation for GPUs",
https://arxiv.org/abs/1609.04309, in the form of `torch.nn.AdaptiveLogSoftmaxWithLoss`:

    log p(v) = log softmax(A h)_v                                              for a frequent token v
    log p(v) = log softmax(A h)_cluster + log softmax(E_c D_c h)_v             for a token v of cluster c

A has a row for every frequent token and for every cluster; from each cluster to the next, rarer one, the rank of
E_c D_c is divided by `div_value`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.codes.design import whole_number
from codehead.codes.table import Seal
from codehead.errors import ConfigurationError
from codehead.heads.feedforward import HEADS, LowRankHead, start_values


@HEADS.register("adaptive")
class AdaptiveHead(nn.Module):
    """Hidden states `(…, hidden)` → log-probabilities `(…, num_bits)` of `num_bits` tokens, in float32 or float64.

    `cutoffs` are ranks by frequency: tokens before the first have full rows; every further cutoff, and the end of the
    vocabulary, closes a cluster. Cluster c = 1, 2, … has rank ⌊hidden / div_value^c⌋, at least 1. With `bias`, every
    row of A and every token of a cluster has a bias.

    `weight` is A, `(cutoffs[0] + clusters, hidden)`. The buffer `order` `(num_bits,)`, int32, holds the rank of every
    token: its id, until `sort_by` is given counts.
    """

    log_probabilities = True
    order: Tensor

    def __init__(
        self,
        hidden_size: int,
        num_bits: int,
        cutoffs: list[int] | None = None,
        div_value: float = 4.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_size = whole_number("hidden_size", hidden_size, 1)
        self.num_bits = whole_number("num_bits", num_bits, 1)
        self.edges = [*_checked(cutoffs, num_bits), num_bits]
        if not 1 <= div_value < math.inf:
            raise ConfigurationError(
                f"div_value={div_value!r} divides the rank from one cluster to the next; give a number of 1 or more"
            )
        self.div_value = float(div_value)
        self.weight = nn.Parameter(torch.empty(self.edges[0] + len(self.edges) - 1, hidden_size))
        self.bias = nn.Parameter(torch.empty(len(self.weight))) if bias else None
        self.tail = nn.ModuleList(
            LowRankHead(hidden_size, stop - start, self._rank(cluster, stop - start), bias)
            for cluster, (start, stop) in enumerate(pairwise(self.edges), start=1)
        )
        self.register_buffer("order", torch.arange(num_bits, dtype=torch.int32))
        self.seal = Seal()
        self.seal.close(self.integers())
        self.reset_parameters()

    def _rank(self, cluster: int, size: int) -> int:
        """The rank of a cluster, counted from 1; an error if full rows would take no more room."""
        rank = max(1, int(self.hidden_size // self.div_value**cluster))
        if rank >= size:
            raise ConfigurationError(
                f"cutoffs={self.edges[:-1]} leave {size} tokens to cluster {cluster}, which has rank {rank}; full rows "
                "would be no larger; omit that cutoff, or choose a larger div_value"
            )
        return rank

    def reset_parameters(self) -> None:
        """As `start_values`. The order stays."""
        start_values([self.weight], [self.bias])
        for cluster in self.tail:
            cluster.reset_parameters()  # type: ignore[operator]

    def integers(self) -> dict[str, Tensor]:
        """The integers that `seal` protects."""
        return {"order": self.order}

    @torch.no_grad()
    def sort_by(self, counts: Tensor) -> None:
        """Rank the tokens by their `counts` `(num_bits,)`, most frequent first; equal counts by id.

        ConfigurationError if the counts have another shape. Call it before training: rows stay tied to ranks.
        """
        if counts.shape != self.order.shape:
            raise ConfigurationError(
                f"counts of shape {tuple(counts.shape)} must be one number for each of the {self.num_bits} tokens"
            )
        self.order.copy_(torch.sort(counts, descending=True, stable=True).indices.argsort())
        self.seal.close(self.integers())

    def parts(self) -> list[Tensor]:
        """The token ids of the frequent tokens and of every cluster, each in the order of their outputs."""
        return list(self.order.argsort().tensor_split(self.edges[:-1]))

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, hidden)` → `(…, num_bits)`, whose exponentials sum to 1."""
        self.seal.check(self.integers())
        frequent, *clusters = _log_softmax(F.linear(hidden, self.weight, self.bias)).split(
            [self.edges[0], *[1] * len(self.tail)], dim=-1
        )
        tails = [share + _log_softmax(tail(hidden)) for share, tail in zip(clusters, self.tail, strict=True)]
        return torch.cat([frequent, *tails], dim=-1).index_select(-1, self.order)

    def extra_repr(self) -> str:
        return f"num_bits={self.num_bits}, cutoffs={self.edges[:-1]}, div_value={self.div_value:g}"


def _log_softmax(scores: Tensor) -> Tensor:
    """Over the last axis, in float32 or float64: probabilities in bfloat16 would not sum to 1."""
    return scores.log_softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _checked(cutoffs: Any, num_bits: int) -> list[int]:
    """The cutoffs as a list of ascending whole numbers, at least 1 and less than the number of tokens."""
    known = isinstance(cutoffs, list | tuple) and cutoffs and all(type(value) is int for value in cutoffs)
    if not known or not all(before < after for before, after in pairwise([0, *cutoffs, num_bits])):
        raise ConfigurationError(
            f"head 'adaptive' needs cutoffs, a list of ranks that rises from 1 or more to less than the {num_bits} "
            f"tokens, such as [2000, 10000]; got cutoffs={cutoffs!r}"
        )
    return list(cutoffs)
