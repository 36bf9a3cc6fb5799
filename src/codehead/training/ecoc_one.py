"""ECOC-ONE for a language model: a code that grows, in rounds, by columns for the tokens that are confused.

A round trains a linear head on the code so far, on hidden states of the training text, decodes hidden states that it
was not trained on, and adds columns for what is confused there (`codehead.codes.ecoc_one`). The backbone stays frozen.
Every bit is a logistic regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from codehead.codes import Codebook, Confusion, build
from codehead.codes.design import whole_number
from codehead.config import DecisionConfig
from codehead.errors import ConfigurationError
from codehead.heads import LinearHead
from codehead.layer import DecisionLayer

STEPS = 300
BATCH = 1024
LEARNING_RATE = 1e-2

DESIGN = "ecoc_one"
START = "merged_decoc"
ROUNDS = 3
TOLD = ("confusion", "evaluate")
"""With one of these the design is told what is confused, and need not find out in rounds."""
HELD_OUT = 0.25
"""Of the positions: what is confused is counted there."""
PIECE = 1024
"""Positions decoded at a time."""


def grows(decision: DecisionConfig) -> bool:
    """Whether the code of a decision layer is to be grown."""
    return decision.code == DESIGN and not set(TOLD) & set(decision.code_params)


def grown(decision: DecisionConfig, prototypes: Tensor, hidden: Tensor, labels: Tensor) -> Codebook:
    """The code that `decision` describes, grown in rounds.

    Args:
        decision: `bits` is the final length; `code_params` are those of ecoc_one, with a `start`
            of merged_decoc unless given, and `rounds` (3).
        prototypes: one vector per token, `(V, d)`, e.g. the rows of the Softmax head.
        hidden: hidden states `(tokens, hidden)` of training text.
        labels: the tokens `(tokens,)` to be predicted there.

    Raises ConfigurationError as ecoc_one does, or if the bits do not give every round a column.
    """
    options = dict(decision.code_params)
    rounds = whole_number("code_params.rounds", options.pop("rounds", ROUNDS), 1)
    seed = decision.seed
    shared: dict[str, Any] = {"num_classes": len(prototypes), "prototypes": prototypes.numpy(), "seed": seed}
    code = _start(options, shared)
    lengths = _lengths(code.length, decision.bits, rounds)
    for length in lengths:
        confusion = _confusion(code, hidden, labels, seed)
        code = build(DESIGN, bits=length, confusion=confusion, start=code, **shared, **{"stop_error": 0.0, **options})
    return code


def _start(options: dict[str, Any], shared: Mapping[str, Any]) -> Codebook:
    """The code of the first round: `options.start`, which is taken out, or one balanced tree."""
    start = options.pop("start", START)
    if isinstance(start, Codebook):
        return start
    nothing = ([0], [0], [1])  # nothing is confused, so that no column is added
    return build(DESIGN, start=start, confusion=nothing, **shared)


def _lengths(first: int, last: int | None, rounds: int) -> list[int]:
    """The codeword length after every round, in nearly equal steps; by default twice the first in the end."""
    final = 2 * first if last is None else int(last)
    if final - first < rounds:
        raise ConfigurationError(
            f"bits={final} leaves {max(0, final - first)} columns for {rounds} rounds after a start of {first}; give "
            f"bits={first + rounds} or more, or fewer code_params.rounds"
        )
    return [first + (final - first) * number // rounds for number in range(1, rounds + 1)]


def _confusion(code: Codebook, hidden: Tensor, labels: Tensor, seed: int) -> Confusion:
    """What a linear head on this code takes for what, on positions that it was not trained on."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.rand(len(hidden), generator=generator) < HELD_OUT
    layer = _trained(code, hidden[~held_out], labels[~held_out], generator)
    wanted = labels[held_out]
    found = [layer.decode(some).ids[:, 0] for some in hidden[held_out].split(PIECE)]
    return Confusion.of((wanted.numpy(), torch.cat(found).numpy(), torch.ones(len(wanted)).numpy()), code.num_classes)


def _trained(code: Codebook, hidden: Tensor, labels: Tensor, generator: torch.Generator) -> DecisionLayer:
    """A linear head with biases, fitted bit by bit: Adam with a cosine schedule, on positions drawn at random."""
    head = LinearHead(hidden.shape[1], code.length, bias=True)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    layer = DecisionLayer(code, head)
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            chosen = torch.randint(len(hidden), (BATCH,), generator=generator)
            optimizer.zero_grad()
            layer.decision.outputs.loss("bitwise", head(hidden[chosen]), labels[chosen], None).value.backward()
            optimizer.step()
            schedule.step()
    return layer
