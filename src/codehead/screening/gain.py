"""What screening a head would gain on this machine: timed in a few seconds, on a head of the same shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codehead.decoding import fast_scan
from codehead.errors import ConfigurationError
from codehead.screening.build import SCANNED, is_large
from codehead.screening.head import ScreenedLinear
from codehead.screening.screen import Screen, Settings

PREFIX = 512
"""Bits that are scanned of a large vocabulary's code."""
TURNS = 9
"""Of both, one after the other; the least time of each is told, which other programs disturbed least."""


@dataclass(frozen=True)
class Gain:
    """Milliseconds of the step from a hidden state to the best token, in float32, of one sequence."""

    hidden_size: int
    num_classes: int
    threads: int
    dense: float
    screened: float

    @property
    def ratio(self) -> float:
        """How many times faster the screened head is."""
        return self.dense / self.screened

    @property
    def pays(self) -> bool:
        """Whether there is something to gain."""
        return self.ratio > 1

    @property
    def verdict(self) -> str:
        """In two lines: what was timed, and what to do."""
        timed = (
            f"The head's step (H = {self.hidden_size:,}, V = {self.num_classes:,}) takes {self.screened:.3g} ms "
            f"screened and {self.dense:.3g} ms as it is: one sequence, float32, {self.threads} threads, this machine."
        )
        if not self.pays:
            return f"{timed}\nScreening gains nothing here."
        return (
            f"{timed}\nScreen it: mode fast finds the same token at a promised share of positions, 99.9% by "
            "default; mode exact gives the dense head's greedy text and gains less. On a GPU neither gains anything."
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"dense_ms": self.dense, "screened_ms": self.screened, "ratio": self.ratio, "pays": self.pays}


@torch.no_grad()
def gain(hidden_size: int, num_classes: int, *, bits: int = 1024, candidates: int = 256) -> Gain:
    """Time a head `(hidden_size → num_classes)`, dense and screened, with rows and codewords that mean nothing.

    Codes are about as long as `screen` makes them, and scanned in two stages where it does so.

    Raises:
        ConfigurationError: FAISS is not installed.
    """
    if not fast_scan.available():
        raise ConfigurationError("screening scans codes with FAISS, which is missing: pip install 'codehead[fast]'")
    weight = torch.full((num_classes, hidden_size), 0.01)
    step = screened_step(weight, _meaningless(weight, bits, min(candidates, num_classes)))
    steps = (lambda some: nn.functional.linear(some, weight).argmax(-1), step)
    times: list[list[float]] = [[_milliseconds(one, hidden_size) for one in steps] for _ in range(TURNS + 2)]
    dense, screened = (min(values) for values in zip(*times[2:], strict=True))
    return Gain(hidden_size, num_classes, torch.get_num_threads(), dense, screened)


def screened_step(weight: Tensor, screen: Screen) -> Callable[[Tensor], Tensor]:
    """Hidden states `(batch, H)` → the best tokens `(batch,)`, as `generate` finds them with a screened head.

    The screen must be ready for the rows `(V, H)`.
    """
    head = ScreenedLinear.of(weight, screen)
    return lambda hidden: head.best(hidden)[0][:, 0]


def _meaningless(weight: Tensor, bits: int, candidates: int) -> Screen:
    """A screen that is ready, of random codewords."""
    classes, size = weight.shape
    rank = min(bits, size)
    prefix, scanned = (PREFIX, SCANNED) if is_large(classes, bits) else (0, 0)
    made = Screen(Settings(classes, size, bits, candidates=candidates, rank=rank, prefix=prefix, scanned=scanned))
    generator = torch.Generator().manual_seed(0)
    made.plane.random_(0, 256, generator=generator)
    made.coordinates.copy_(torch.arange(bits) % rank)
    made.set("white", torch.randn(rank, size, generator=generator))
    made.set("sizes", torch.rand(bits, generator=generator))
    made.prepare(weight, None)
    return made


def _milliseconds(step: Callable[[Tensor], Tensor], hidden_size: int) -> float:
    hidden = torch.randn(1, hidden_size)
    start = time.perf_counter()
    step(hidden)
    return 1e3 * (time.perf_counter() - start)
