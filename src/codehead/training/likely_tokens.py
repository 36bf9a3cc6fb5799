"""Distillation from a Softmax head over all tokens, or over those that matter at some positions and a few others.

Most tokens of a large vocabulary are next to impossible at any position. A step therefore compares the scores of the
tokens that are likely over the whole text, those that are likely at one of its positions, and a random sample of the
others, weighted to stand for all of them (sampled Softmax; Y. Bengio, J.-S. Senécal 2008, "Adaptive Importance Sampling
to Accelerate Training of a Neural Probabilistic Language Model").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.codes.packing import slices
from codehead.losses import CHUNK_SCORES
from codehead.models.probe import SoftmaxHead
from codehead.processes import ALONE, Processes
from codehead.training.model import is_native

Scores = Callable[[Tensor], Tensor]
"""Inputs of a head at some positions `(tokens, ·)` → token scores `(tokens, V)`."""


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

    The loss is the Kullback-Leibler divergence of the student's softmax on `given` from the teacher's on `hidden`; with
    labels `(tokens,)`, it is mixed with their cross entropy, which has the `label_weight`. No more than CHUNK_SCORES
    scores of the `num_classes` tokens are formed at a time, but at least those of one position.
    """
    rows = max(1, CHUNK_SCORES // num_classes)
    known = [None] * -(-len(hidden) // rows) if labels is None else labels.split(rows)
    total = 0.0
    for some, seen, wanted in zip(given.split(rows), hidden.split(rows), known, strict=True):
        nats = divergence(student(some), teacher, seen, wanted, label_weight)
        (nats / len(hidden)).backward()
        total += float(nats.detach()) / len(hidden)
    return total


def divergence(scores: Tensor, teacher: Scores, hidden: Tensor, labels: Tensor | None, label_weight: float) -> Tensor:
    """The loss of `imitate`, summed over positions with token scores `(tokens, V)`: a scalar in nats."""
    with torch.no_grad():
        likely = teacher(hidden).float().log_softmax(-1)
    found = scores.log_softmax(-1)
    nats = F.kl_div(found, likely, reduction="sum", log_target=True)
    return nats if labels is None else torch.lerp(nats, F.nll_loss(found, labels, reduction="sum"), label_weight)


ALWAYS = 4096
"""The likeliest tokens over all positions, whose scores are compared at every step."""
DRAWN = 2048
"""The other tokens sampled at every step; a few more to reach a multiple of SIZES."""
SIZES = 1024
"""A step's number of tokens is a multiple of this: oneDNN caches a compiled kernel for every new size of a product, a
megabyte or more each."""
LIKELY = 16
"""Tokens kept per position."""
TOGETHER = 2**26
"""Token scores of positions that are looked up together, so that the rows of the head are read once for all."""
CACHED = 2**22
"""Token scores at a time: memory blocks of that size are reused and not returned to the system."""


@dataclass(frozen=True)
class LikelyTokens:
    """The likely tokens of a Softmax head at some positions, looked up once."""

    ids: Tensor
    """`(positions, LIKELY)`, int32: the likeliest tokens of each."""
    log_sums: Tensor
    """`(positions,)`, float32: subtracted from a score, it gives a log probability."""
    expected: Tensor
    """`(V,)`, float64: the expected count of each token over the positions of the text."""

    @classmethod
    def of(
        cls,
        teacher: SoftmaxHead,
        hidden: Tensor,
        progress: Callable[[int, int], None] = lambda done, total: None,
        processes: Processes = ALONE,
        written: int = 0,
    ) -> LikelyTokens:
        """Those of hidden states `(positions, hidden)`, shared by `processes`; `progress` gets (done, all).

        The first `written` positions, in text of the model's own, do not count for `expected`.
        """
        size, device = len(teacher.head.weight), teacher.head.weight.device
        rows, step = min(max(1, TOGETHER // size), len(hidden)), max(1, CACHED // size)
        scores, expected = torch.empty(rows, size, device=device), torch.zeros(size, dtype=torch.float64)
        # Allocated at once: kept tensors scattered among freed ones would fragment the memory.
        ids, log_sums = torch.zeros(len(hidden), min(LIKELY, size), dtype=torch.int32), torch.zeros(len(hidden))
        pieces = zip(hidden.split(rows), ids.split(rows), log_sums.split(rows), strict=True)
        for number, (some, *kept) in enumerate(pieces):
            if processes.does(number):
                scored = _scored(teacher, some.to(device, torch.float32), scores)
                firsts = range(rows * number, len(hidden), step)
                parts = (whole.split(step) for whole in (scored, *kept))
                for first, of_scores, of_ids, of_sums in zip(firsts, *parts, strict=False):
                    expected += _look(of_scores, of_ids, of_sums, max(0, written - first))
            progress(min(rows * (number + 1), len(hidden)), len(hidden))
        shared = (processes.gathered([part]) for part in (ids, log_sums, expected))
        return cls(*(torch.stack(parts).sum(0, dtype=parts[0].dtype) for parts in shared))

    def draw(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The tokens to compare at some positions.

        Their ids `(tokens,)`, ascending, and the logs of how many tokens each stands for, `(tokens,)`.
        """
        certain = torch.zeros(len(self.expected), dtype=torch.bool)
        certain[self.expected.topk(min(ALWAYS, len(certain))).indices] = True
        certain[self.ids[positions].long().flatten()] = True
        others = (~certain).nonzero().flatten()
        count = len(certain) - len(others) + DRAWN
        drawn = others[torch.randperm(len(others), generator=generator)[: DRAWN + -count % SIZES]]
        log_weights = torch.zeros(len(certain))
        if len(drawn):
            log_weights[drawn] = math.log(len(others) / len(drawn))
        certain[drawn] = True
        return certain.nonzero().flatten(), log_weights[certain]


def _look(scores: Tensor, ids: Tensor, log_sums: Tensor, skipped: int) -> Tensor:
    """Fill `ids` and `log_sums` from scores `(positions, V)`, which it overwrites; the expected counts `(V,)`.

    The first `skipped` positions are not counted.
    """
    log_sums.copy_(scores.logsumexp(-1))
    ids.copy_(scores.topk(ids.shape[1], -1).indices)
    return scores.sub_(log_sums.to(scores.device)[:, None]).exp_()[skipped:].sum(0).double().cpu()


@torch.no_grad()
def _scored(teacher: SoftmaxHead, hidden: Tensor, room: Tensor) -> Tensor:
    """Scores of hidden states `(positions, hidden)`, in as many rows of `room` `(≥ positions, V)`.

    In blocks of tokens: their rows of the head, perhaps cast to bf16, are read once for all positions.
    """
    rows, size = room.shape
    with in_bf16(hidden.device):
        for tokens in slices(size, CACHED // rows):
            room[: len(hidden), tokens] = teacher.of_some(hidden, tokens)
    return room[: len(hidden)]


def is_worth_it(num_classes: int) -> bool:
    """Whether `num_classes` tokens are well more than a step would compare anyway."""
    return num_classes > 2 * (ALWAYS + DRAWN)


def imitate_some(
    student: Callable[[Tensor, Tensor], Tensor],
    teacher: SoftmaxHead,
    hidden: Tensor,
    log_sums: Tensor,
    chosen: tuple[Tensor, Tensor],
) -> float:
    """Add gradients of the mean divergence over positions `(positions, hidden)`, estimated from chosen tokens; nats.

    They are `chosen` by `LikelyTokens.draw`.
    `student` gives the scores of tokens at hidden states; of teacher and student no more than CHUNK_SCORES are formed
    at a time.
    """
    ids, log_weights = (values.to(hidden.device) for values in chosen)
    rows, total = max(1, CHUNK_SCORES // len(ids)), 0.0
    for some, sums in zip(hidden.split(rows), log_sums.to(hidden.device).split(rows), strict=True):
        with in_bf16(hidden.device):
            wanted, found = teacher.of_some(some, ids), student(some, ids)
        wanted = wanted.detach() - sums[:, None] + log_weights
        nats = F.kl_div((found.float() + log_weights).log_softmax(-1), wanted, reduction="sum", log_target=True)
        (nats / len(hidden)).backward()
        total += float(nats.detach()) / len(hidden)
    return total


def in_bf16(device: torch.device) -> torch.autocast:
    """Matrix products in bf16 where these are fast: their rounding errors are smaller than the noise of sampling."""
    fast = device.type != "cpu" or is_native(torch.bfloat16)
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)
