"""How far a student's distribution over tokens is from its teacher's, with gradients in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.losses import CHUNK_SCORES

Scores = Callable[[Tensor], Tensor]
"""Whatever a model is given at some positions `(tokens, ·)` → token scores `(tokens, V)`."""


def imitate(
    student: Scores,
    given: Tensor,
    teacher: Scores,
    hidden: Tensor,
    labels: Tensor | None,
    label_weight: float,
    num_classes: int,
) -> float:
    """Add the gradients of the mean loss over some positions; returns it in nats.

    It is the Kullback-Leibler divergence of the student's softmax, of what is `given` to it, from the teacher's, of
    `hidden`; with labels `(tokens,)`, that and their cross entropy, which has the `label_weight`. No more than
    CHUNK_SCORES scores of the `num_classes` tokens are formed at a time, as many as one position has at least.
    """
    rows = max(1, CHUNK_SCORES // num_classes)
    known = [None] * -(-len(hidden) // rows) if labels is None else labels.split(rows)
    total = 0.0
    for some, seen, wanted in zip(given.split(rows), hidden.split(rows), known, strict=True):
        with torch.no_grad():
            likely = teacher(seen).float().log_softmax(-1)
        found = student(some).log_softmax(-1)
        nats = F.kl_div(found, likely, reduction="sum", log_target=True)
        if wanted is not None:
            nats = torch.lerp(nats, F.nll_loss(found, wanted, reduction="sum"), label_weight)
        (nats / len(hidden)).backward()
        total += float(nats.detach()) / len(hidden)
    return total
