"""The best k tokens under an explicit rule for ties."""

from __future__ import annotations

import torch
from torch import Tensor

from codehead.errors import ConfigurationError


def top_k(scores: Tensor, k: int, ties: str | int = "lowest") -> Tensor:
    """Token ids `(…, k)` of the largest scores `(…, V)`, best first.

    Equal scores are ordered by token id (`ties="lowest"`), or by a random order of the tokens drawn once from the
    seed given as `ties`.

    Raises:
        ConfigurationError: k is not in 1 … V, or `ties` is neither "lowest" nor a seed, 0 … 2⁶⁴ − 1.
    """
    num_classes = scores.shape[-1]
    check_range(num_classes, k)
    rank = _tie_rank(num_classes, ties).to(scores.device)
    if scores.device.type != "cpu" or torch.compiler.is_compiling():  # looking for ties would wait for the device
        return _exact(scores, rank, k)
    values, ids = torch.topk(scores, k, dim=-1)
    best = _in_order(ids, values, rank)[0]
    least = values[..., -1:]
    cut = (scores == least).sum(-1) > (values == least).sum(-1)  # equal scores on both sides of the end
    if cut.any():
        best[cut] = _exact(scores[cut], rank, k)
    return best


def check_range(num_classes: int, k: int) -> None:
    """Raise a ConfigurationError unless k is in 1 … V."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= num_classes:
        raise ConfigurationError(f"k must be between 1 and the number of classes {num_classes}, got {k!r}")


def _exact(scores: Tensor, rank: Tensor, k: int) -> Tensor:
    """The whole rule at once, whatever is equal."""
    if scores.dtype == torch.float64:
        return _by_sorting(scores, rank)[..., :k]
    return torch.topk(_unique_keys(scores, rank), k, dim=-1).indices


def _in_order(ids: Tensor, scores: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Ids `(…, m)` of tokens and their scores, the best first, equal ones by rank."""
    by_rank = rank[ids].argsort(dim=-1)
    best = torch.sort(scores.gather(-1, by_rank), dim=-1, descending=True, stable=True).indices
    order = by_rank.gather(-1, best)
    return ids.gather(-1, order), scores.gather(-1, order)


def top_k_among(
    ids: Tensor, scores: Tensor, k: int, num_classes: int, ties: str | int = "lowest"
) -> tuple[Tensor, Tensor]:
    """Ids and scores `(…, k)` as by `top_k`, where only the tokens `ids` `(…, m)` of V have `scores` `(…, m)`."""
    best, values = _in_order(ids, scores, _tie_rank(num_classes, ties).to(ids.device))
    return best[..., :k], values[..., :k]


def _by_sorting(scores: Tensor, rank: Tensor) -> Tensor:
    """Stable sorting keeps the order of equal scores, so listing the tokens by rank first is the whole rule."""
    order = rank.argsort()
    return order[torch.sort(scores[..., order], dim=-1, descending=True, stable=True).indices]


def _unique_keys(scores: Tensor, rank: Tensor) -> Tensor:
    """int64 keys ordered by score, then by rank: the score's bits, made monotone, above the inverted rank."""
    bits = (scores.float() + 0.0).view(torch.int32).long()  # + 0.0 turns −0.0 into 0.0
    monotone = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (monotone << 32) + (2**32 - 1 - rank)


def _tie_rank(num_classes: int, ties: str | int) -> Tensor:
    """`(V,)`: the place of every token among tokens of equal score."""
    if ties == "lowest":
        return torch.arange(num_classes)
    if isinstance(ties, bool) or not isinstance(ties, int) or not 0 <= ties < 2**64:
        raise ConfigurationError(f'ties must be "lowest" or an integer seed from 0 to 2**64 - 1, got {ties!r}')
    return torch.randperm(num_classes, generator=torch.Generator().manual_seed(ties))
