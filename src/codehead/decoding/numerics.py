"""The precision in which scores are computed, and the order in which equal scores are ranked."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from codehead.errors import ConfigurationError, DataError

NARROW = 1e3
"""Up to this size, sums of a few hundred bit logits in float32 are accurate to 0.01."""
UNEVEN = 1e8
"""Beyond this size, a bit logit of about 1 hardly changes a sum in float64."""
LARGEST = 1e300
"""Sums of a few thousand numbers up to this size do not overflow float64."""


def require_real(name: str, values: Tensor) -> None:
    """Raise a ConfigurationError unless the values, the argument `name`, are real floating-point numbers."""
    if not values.is_floating_point():
        raise ConfigurationError(
            f"{name} must be floating-point numbers, got {values.dtype}; convert them first (hard bits to ±1.0, not to "
            "0 and 1)"
        )


def require_whole(name: str, values: Tensor) -> None:
    """Raise a DataError unless the values, the argument `name`, are whole numbers."""
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise DataError(f"{name} must be whole numbers, got {values.dtype}; give class ids, e.g. as torch.int64")


def wide(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they already are: sums of many bits rounded to bfloat16 would tie."""
    return values if values.dtype == torch.float64 else values.float()


def roomy(values: Tensor) -> Tensor:
    """As `wide`, but in float64 where sums of values this large would round to equal numbers or overflow in float32.

    Raises:
        ConfigurationError: float64 would overflow too.
    """
    values, largest = wide(values), _largest(values)
    if LARGEST < largest < torch.inf:
        raise ConfigurationError(
            f"bit logits as large as {largest:.0e} overflow when they are added up; scale them to {LARGEST:.0e} at most"
        )
    return values.double() if NARROW < largest < torch.inf else values


def is_uneven(values: Tensor) -> bool:
    """Whether some of the values are so large that others are lost in a sum with them."""
    return _largest(values) > UNEVEN


def _largest(values: Tensor) -> float:
    """The largest absolute value, NaN if there is one; 0 where checking would wait for a device or break a graph."""
    if values.device.type != "cpu" or torch.compiler.is_compiling() or not values.numel():
        return 0.0
    return float(values.detach().abs().max())


def narrowed(scores: Tensor, dtype: torch.dtype, *, shifted: bool) -> Tensor:
    """Scores `(…, V)` in a dtype that may not hold them: those beyond its range are clamped.

    If `shifted`, scores that are log-likelihoods up to a constant per position are shifted so that the best is 0 and
    no probability is lost.
    """
    if scores.dtype == dtype:
        return scores
    if shifted:
        scores = scores - scores.detach().amax(-1, keepdim=True)
    limit = torch.finfo(dtype).max
    return scores.clamp(-limit, limit).to(dtype)


def no_autocast(device_type: str) -> AbstractContextManager[None]:
    """Switch off automatic mixed precision on devices of this type."""
    return torch.autocast(device_type, enabled=False) if torch.amp.is_autocast_available(device_type) else nullcontext()


def top_k(scores: Tensor, k: int, ties: str | int = "lowest") -> Tensor:
    """Token ids `(…, k)` of the largest scores `(…, V)`, best first.

    Equal scores are ordered by token id (`ties="lowest"`), or by a random order of the tokens drawn once from the
    seed given as `ties`.

    Raises:
        ConfigurationError: k is not in 1 … V, or `ties` is neither "lowest" nor a seed, 0 … 2⁶⁴ − 1.
    """
    num_classes = scores.shape[-1]
    check_range(num_classes, k)
    if k == 1 and ties == "lowest":
        return scores.argmax(-1, keepdim=True)  # the first of equal scores
    rank = _tie_rank(num_classes, ties).to(scores.device)
    if scores.device.type != "cpu" or torch.compiler.is_compiling():  # looking for ties would wait for the device
        return _exact(scores, rank, k)
    values, ids = torch.topk(scores, k, dim=-1)
    best = _in_order(ids, values, rank)[0]
    least = values[..., -1:]
    cut = (scores == least).sum(-1) > (values == least).sum(-1)  # equal scores on both sides of the cut
    if cut.any():
        best[cut] = _exact(scores[cut], rank, k)
    return best


def check_range(num_classes: int, k: int) -> None:
    """Raise a ConfigurationError unless k is in 1 … V."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= num_classes:
        raise ConfigurationError(f"k must be between 1 and the number of classes {num_classes}, got {k!r}")


def _exact(scores: Tensor, rank: Tensor, k: int) -> Tensor:
    """The k best by the full rule, however many scores are equal."""
    if scores.dtype == torch.float64:
        order = rank.argsort()  # stable sorting keeps the order of equal scores: listing tokens by rank first is enough
        return order[torch.sort(scores[..., order], dim=-1, descending=True, stable=True).indices[..., :k]]
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
