"""First values of a head from logistic regressions: every bit a binary problem on stored hidden states.

A fresh head on a trained backbone otherwise spends the beginning of a training on what hundreds of cheap steps on
stored hidden states can do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from codehead.layer import Decision
from codehead.models.probe import LogitScaling

STEPS = 300
BATCH = 1024
LEARNING_RATE = 1e-2

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def fit_bits(
    head: nn.Module,
    decision: Decision,
    hidden: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    progress: Progress = lambda done, steps: None,
    tail: LogitScaling = LogitScaling(),  # noqa: B008  (frozen)
) -> None:
    """Fit a head to the bits of labels `(tokens,)` at hidden states `(tokens, hidden)`, in place.

    Adam with a cosine schedule on the bitwise loss, in float32; where single tokens have rows or biases, which no bit
    tells, on the codeword loss. Positions are drawn with the `generator`; `tail` is what the model will do to outputs.
    """
    weight = next(head.parameters())
    device, dtype = weight.device, weight.dtype
    learnt = [head, *(part for part in (decision.corrections, decision.chain) if part is not None)]
    for part in learnt:
        part.float()  # bf16 rounds small steps away
    optimizer = torch.optim.Adam([*head.parameters(), *decision.parameters()], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with torch.enable_grad():
        for step in range(STEPS):
            chosen = torch.randint(len(hidden), (BATCH,), generator=generator)
            outputs = tail(head(hidden[chosen].to(device, torch.float32)))
            optimizer.zero_grad()
            decision.reading.loss("bitwise", outputs, labels[chosen].to(device), None).value.backward()
            optimizer.step()
            schedule.step()
            progress(step + 1, STEPS)
    optimizer.zero_grad()
    for part in learnt:
        part.to(dtype)
