"""Where the time of a screened head step goes, on hidden states of a real model.

    python benchmarks/screening_profile.py --model FOLDER --screened FOLDER --data TEXT --out FILE

Each position is timed cold, after reading 400 MB as a backbone does, and hot, back to back.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from screening import recorded, states
from torch import Tensor

from codehead.decoding.fast_scan import FastScan
from codehead.screening.head import ScreenedLinear
from codehead.screening.screen import Search
from codehead.training.model import load_model

PARTS = {
    "the scan by FAISS": (FastScan, "_found"),
    "white coordinates": (Search, "whitened"),
    "rows of candidates": (ScreenedLinear, "_logits"),
}
WHOLE = "the whole step"
REST = "other calls of NumPy and torch"


def timed(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    """The same function, with its milliseconds recorded."""

    def run(*arguments: Any) -> Any:
        start = time.perf_counter()
        found = function(*arguments)
        times.append(1e3 * (time.perf_counter() - start))
        return found

    return run


def profile(step: Callable[[Tensor], Any], hidden: Tensor, between: Tensor) -> dict[str, float]:
    """Median milliseconds of every part of a step."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    kept = {name: getattr(*place) for name, place in PARTS.items()}
    for name, (owner, method) in PARTS.items():
        setattr(owner, method, timed(kept[name], times[name]))
    whole = timed(step, times[WHOLE])
    for some in hidden.split(1):
        if len(between):
            between.sum()
        whole(some)
    for name, (owner, method) in PARTS.items():
        setattr(owner, method, kept[name])
    found = {name: statistics.median(values) for name, values in times.items()}
    return {**found, REST: found[WHOLE] - sum(found[name] for name in PARTS)}


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Cold and hot."""
    weight, hidden = states(options)
    screen = load_model(options.screened).get_output_embeddings().screen
    screen.prepare(weight, None)
    step = ScreenedLinear.of(weight, screen).best
    profile(step, hidden[:20], hidden[:0])
    settings = screen.settings
    return {
        "screening": {"bits": settings.bits, "prefix": settings.prefix, "candidates": settings.candidates},
        "cold": profile(step, hidden, torch.zeros(int(options.between * 1e6) // 4)),
        "hot": profile(step, hidden, hidden[:0]),
    }


def main() -> None:
    """Parse the command line, measure, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--screened", required=True, help="folder that `codehead screen` wrote")
    parser.add_argument("--data", required=True, help="text: hub id or local file")
    parser.add_argument("--positions", type=int, default=200)
    parser.add_argument("--between", type=float, default=400, help="megabytes that are read before a cold step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(namespace=argparse.Namespace(shape=None, prompts=None))
    torch.set_num_threads(options.threads)
    recorded("screening-profile", options, measure)


if __name__ == "__main__":
    main()
