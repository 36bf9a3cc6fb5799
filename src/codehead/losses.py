"""Losses on bit logits. Every loss averages over tokens; labels of −100 (padding, prompts) do not count."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from codehead.codes.table import CodewordTable
from codehead.decoding import posterior_scores, refuse_other_length
from codehead.decoding.numerics import require_real, require_whole
from codehead.errors import ConfigurationError, DataError
from codehead.registry import Registry

IGNORE = -100
CHUNK_SCORES = 2**25
"""Token scores computed at a time (128 MiB in float32; glibc returns blocks above 32 MiB to the system at once)."""


class Loss(NamedTuple):
    """A loss and, if it consists of binary problems, the mean of each."""

    value: Tensor
    """Scalar, in nats."""
    per_node: Tensor | None
    """`(n,)`: mean binary cross entropy of every dichotomizer over the labels that it separates, detached."""
    per_token: Tensor | None = None
    """`(tokens,)`: the losses that the value averages, 0 where a label is ignored."""


Nodes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(outputs `(tokens, ·)`, labels `(tokens,)`) → bit logits and their target symbols, both `(tokens, n)`; 0 for none."""
TokenScores = Callable[[Tensor], Tensor]
LossFunction = Callable[[Tensor, Tensor, CodewordTable, "Tensor | int | None"], Loss]
LOSSES: Registry[LossFunction] = Registry("loss")


@LOSSES.register("bitwise")
def bitwise(bit_logits: Tensor, labels: Tensor, table: CodewordTable, num_items: Tensor | int | None = None) -> Loss:
    """Binary cross entropy of every bit, averaged over the bits of a codeword and over tokens (paper: L_i).

    Only the codewords of the labels are looked up: no tensor has V entries. In a ternary code the mean of a token
    runs over the non-zero positions of its codeword.

    Args:
        bit_logits: `(…, n)`.
        labels: `(…)`, aligned with the bit logits; −100 is ignored.
        table: the coding matrix.
        num_items: divide the sum over tokens by this, not by their number in this call (gradient accumulation).

    Raises:
        ConfigurationError: the bit logits are not n.
        DataError: a label is not a class of the code.
    """
    refuse_other_length(bit_logits, table)
    return of_nodes(bit_logits, labels, table, num_items, lambda z, y: (z, table.lookup(y)), per_bit=True)


def of_nodes(
    outputs: Tensor,
    labels: Tensor,
    table: CodewordTable,
    num_items: Tensor | int | None,
    nodes: Nodes,
    per_bit: bool,
) -> Loss:
    """Binary cross entropy of the bits that `nodes` derives from a head's outputs `(…, ·)` and the labels `(…)`.

    `per_bit` averages it over the bits of a token that are not 0; otherwise it is their sum, a negative log-likelihood.
    """
    outputs, labels = _flatten(outputs, labels, table)
    counts = labels != IGNORE
    bit_logits, symbols = nodes(outputs, labels.masked_fill(~counts, 0))
    symbols = symbols * counts.unsqueeze(-1)
    seen = symbols.abs()
    # Ignored bits are set to 0 before the softplus: 0 · inf would be NaN.
    nats = seen * F.softplus(-torch.where(seen > 0, symbols * bit_logits.float(), 0.0))
    per_token = nats.sum(-1) / seen.sum(-1).clamp(min=1) if per_bit else nats.sum(-1)
    per_node = nats.detach().sum(0) / seen.sum(0).clamp(min=1)
    return Loss(per_token.sum() / _items(labels, num_items), per_node, per_token)


def codeword(
    bit_logits: Tensor,
    labels: Tensor,
    table: CodewordTable,
    num_items: Tensor | int | None = None,
    scores: TokenScores | None = None,
) -> Loss:
    """Cross entropy of the codeword posterior: softmax over V of the likelihood scores.

    With the one_vs_all code this is the stock Softmax loss, bit for bit (also NaN without a single label). Otherwise
    more than CHUNK_SCORES scores are computed in pieces, and again for the gradient, so that no `(tokens, V)` tensor
    is kept. Arguments as for `bitwise`; `scores` computes the scores `(tokens, V)`, by default those of the code.
    """
    bit_logits, labels = _flatten(bit_logits, labels, table)
    if table.is_implicit:
        refuse_other_length(bit_logits, table)
        return Loss(_stock_cross_entropy(bit_logits, labels, num_items), None)
    score = scores or partial(posterior_scores, table=table)
    rows = max(1, CHUNK_SCORES // table.num_classes)
    pieces = list(zip(bit_logits.split(rows), labels.split(rows), strict=True))
    if len(pieces) == 1:
        nats = [F.cross_entropy(score(bit_logits), labels, ignore_index=IGNORE, reduction="sum")]
    else:
        nats = [checkpoint(_nats, z, y, score, use_reentrant=False, preserve_rng_state=False) for z, y in pieces]
    return Loss(torch.stack(nats).sum() / _items(labels, num_items), None)


LOSSES.register("codeword")(codeword)


def _nats(bit_logits: Tensor, labels: Tensor, score: TokenScores) -> Tensor:
    return _InPlaceNats.apply(score(bit_logits), labels)


class _InPlaceNats(Function):
    """Cross entropy summed over scores `(tokens, V)`, in their own memory: log-probabilities, then the gradient."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, labels: Tensor) -> Tensor:
        # Kernels read an element before they write it.
        logs = torch.log_softmax(scores.detach(), -1, out=scores.detach())
        ctx.save_for_backward(logs, labels)
        return F.nll_loss(logs, labels, ignore_index=IGNORE, reduction="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        gradient, labels = ctx.saved_tensors
        counts = (labels != IGNORE).unsqueeze(-1)
        gradient.exp_().scatter_add_(-1, labels.unsqueeze(-1) * counts, -counts.to(gradient.dtype))
        return gradient.mul_(slope * counts), None


def _stock_cross_entropy(logits: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """What transformers' ForCausalLMLoss computes, in the same order of operations."""
    reduction = "mean" if num_items is None else "sum"
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction=reduction)
    return loss if num_items is None else loss / _items(labels, num_items)


def _flatten(bit_logits: Tensor, labels: Tensor, table: CodewordTable) -> tuple[Tensor, Tensor]:
    """`(tokens, n)` and `(tokens,)` on one device, with labels checked where that needs no synchronisation."""
    require_real("bit logits", bit_logits)
    require_whole("labels", labels)
    if bit_logits.shape[:-1] != labels.shape:
        raise ConfigurationError(
            f"labels of shape {tuple(labels.shape)} do not fit bit logits of shape {tuple(bit_logits.shape)}; "
            "every position needs one label"
        )
    labels = labels.reshape(-1).long()
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_labels(labels, table.num_classes)
    return bit_logits.reshape(-1, bit_logits.shape[-1]), labels.to(bit_logits.device)


def _check_labels(labels: Tensor, num_classes: int) -> None:
    wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != IGNORE)]
    if wrong.numel():
        raise DataError(
            f"label {int(wrong[0])} is not one of the {num_classes} classes of the code (0 … {num_classes - 1}, or "
            f"{IGNORE} to ignore a position); does the tokenizer belong to this model?"
        )


def _items(labels: Tensor, num_items: Tensor | int | None) -> Tensor | int:
    """The divisor of a sum over tokens; a batch without a single label gives a loss of zero, not NaN."""
    if num_items is None:
        return (labels != IGNORE).sum().clamp(min=1)
    return num_items.to(labels.device) if isinstance(num_items, Tensor) else num_items
