"""How much of a real model's Softmax head small heads keep, on hidden states stored by frontier_real_states.py.

    python benchmarks/frontier_real.py head --cache FOLDER --model FOLDER --head code-0.05
    python benchmarks/frontier_real.py collect --cache FOLDER --out results/benchmarks/frontier-real-1.json

Codes come from the functions of `convert`: attached, distilled and rounded (`--no-calibrate`). The backbone is
never computed, so every figure compares heads on the same hidden states. A head that was killed resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frontier_real_report import COMPARED
from frontier_real_states import MIXTURE
from torch import Tensor, nn

from codehead.config import DecisionConfig, ModelShape
from codehead.lab.baselines import quantised, trimmed
from codehead.lab.result import Result
from codehead.models.hidden import Statistics
from codehead.models.probe import softmax_head
from codehead.models.rounding import to_int4, to_int8
from codehead.models.surgery import attach
from codehead.recommendation import recommend, shape_of
from codehead.training.config import Distillation
from codehead.training.data import STATISTICS_TOKENS
from codehead.training.distil import distil
from codehead.training.likely_tokens import LikelyTokens
from codehead.training.loop import Stages
from codehead.training.model import load_model
from codehead.training.provenance import provenance, utc_now

SETS = ("valid", "dolly", "books", "wikitext", "alpaca", "stories", "german", "python")
"""The text for choices, and the test sets."""
BEST = (1, 8, 32, 128, 512)
"""How many of a head's best tokens are searched for the old head's choice."""
PIECE = 80
"""Positions scored at a time."""
ROWS = {"low_rank": "int8", "adaptive": "int4"}
"""The better setting for each trained baseline, from the protocols on small models."""
QUANTISED = {"int8": (8, 64), "int4": (4, 64), "int3": (3, 64), "int2": (2, 32)}


def states(cache: Path, name: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Hidden states `(positions, H)`, float16 and memory-mapped, and labels `(positions,)`."""
    blocks = int((cache / f"{name}.done").read_text())
    kept = np.load(cache / f"{name}.states.npy", mmap_mode="c")[:blocks]
    labels = np.load(cache / f"{name}.labels.npy")[:blocks]
    hidden, wanted = torch.from_numpy(kept).flatten(0, 1), torch.from_numpy(labels).flatten().long()
    return hidden[:count], wanted[:count]


def written(cache: Path) -> int:
    """How many of the first positions to learn from are the model's own text."""
    return int((cache / "written").read_text())


def looked_up(cache: Path, teacher: Any, hidden: Tensor) -> LikelyTokens:
    """The old head's likely tokens at the training positions, stored for all heads."""

    def told(done: int, total: int) -> None:
        print(f"looking up {done} of {total}", flush=True) if not done % 8500 else None

    look = partial(LikelyTokens.of, teacher, hidden, told, written=written(cache))
    return LikelyTokens(**Stages(cache).tensors("likely", lambda: vars(look())))


def largest(kind: str, share: float, shape: ModelShape) -> DecisionConfig:
    """The largest low-rank head or adaptive softmax within a share of the bytes."""
    wide = {"low_rank": lambda size: {"rank": size}, "adaptive": lambda size: {"cutoffs": [size], "div_value": 16}}

    def decision(size: int) -> DecisionConfig:
        params = {**wide[kind](size), "bias": True}
        return DecisionConfig(
            code="one_vs_all", head=kind, head_params=params, loss="codeword", start="old_head", weights=ROWS[kind]
        )

    sizes = range(1, shape.hidden_size if kind == "low_rank" else shape.num_classes)
    return decision(bisect_right(sizes, share, key=lambda size: decision(size).byte_share(shape)))


def trained(name: str, options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """A model with the head of a kind and a budget, built as `convert` builds it, and how it was built."""
    kind, _, budget = name.removeprefix("trained_").partition("-")
    shape = shape_of(options.model)
    is_code = kind == "code"
    decision = recommend(options.model, budget=budget).config if is_code else largest(kind, float(budget), shape)
    hidden, labels = states(options.cache, "learn", options.positions)
    model = load_model(options.model, dtype="float32").eval()
    teacher = softmax_head(model)
    likely = looked_up(options.cache, teacher, hidden)
    start, given = time.process_time(), hidden[written(options.cache) :][:STATISTICS_TOKENS].float()
    statistics = Statistics.of(likely.expected, given)
    attach(model, replace(decision, weights="float", packed=False), statistics=statistics)
    started = time.process_time()
    learning = Distillation(
        options.steps, options.batch_tokens, options.learning_rate, options.code_rate, tokens=options.positions,
        own_text=written(options.cache) / options.positions,
    )  # fmt: skip

    seen: list[int] = []

    def told(done: int, steps: int, nats: float) -> None:
        seen.append(done)
        print(f"{name} {done}/{steps} {nats:.4f} {(time.process_time() - started) / len(seen):.2f} s", flush=True)

    stages = Stages(options.cache / name)
    distil(model, teacher, hidden, learning, told, stages, labels, likely if is_code else None)
    spent = time.process_time() - started
    learnt = spent * options.steps / len(seen) if seen else None  # of all steps, even if it was stopped between them
    to_int4(model, given) if decision.weights == "int4" else to_int8(model)
    seconds = {"start": started - start, "learning": learnt}
    return model, {
        "byte_share": decision.byte_share(shape), "decision": decision.to_dict(), "distil": asdict(learning),
        "processor_seconds": seconds,
    }  # fmt: skip


def baseline(name: str, options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The weight `(V, H)` that a compressed Softmax head represents, and its bytes."""
    weight = load_model(options.model, dtype="float32").get_output_embeddings().weight.detach()
    hidden, labels = (part[written(options.cache) :] for part in states(options.cache, "learn", options.positions))
    kind, *how = name.split("-")
    if kind == "trimmed":
        counts = torch.bincount(labels, minlength=len(weight))
        found = trimmed(weight, counts.argsort(descending=True, stable=True)[: int(float(how[0]) * len(weight))])
    elif kind == "low_rank":
        return low_rank(weight, hidden[:STATISTICS_TOKENS].float(), float(how[0]))
    else:
        some = hidden[:STATISTICS_TOKENS].float()
        moments = some.T @ some / len(some) if how == ["corrected"] else None
        found = quantised(weight, *QUANTISED[kind], moments)
    return found.weight, {"byte_share": found.num_bytes / (2 * weight.numel())}


def low_rank(weight: Tensor, hidden: Tensor, share: float) -> tuple[Tensor, dict[str, Any]]:
    """The rows that keep most of the scores with a rank that takes a share of the bytes, both factors in int8."""
    rank = int(share * 2 * weight.numel() / (sum(weight.shape) + 4))
    second = (hidden.T @ hidden / len(hidden)).double()
    variances, vectors = torch.linalg.eigh(second)
    root = (vectors * variances.clamp(min=1e-9).sqrt()) @ vectors.T
    directions = torch.linalg.eigh(root @ (weight.T @ weight).double() @ root).eigenvectors.flip(1)[:, :rank]
    up, down = weight @ (root @ directions).float(), (directions.T @ torch.linalg.inv(root)).float()
    rounded = [(part / (s := part.abs().amax(1, keepdim=True) / 127)).round() * s for part in (up, down)]
    num_bytes = sum(part.numel() + 2 * len(part) for part in rounded)
    return rounded[0] @ rounded[1], {"byte_share": num_bytes / (2 * weight.numel()), "rank": rank}


@torch.no_grad()
def measured(score: Any, weight: Tensor, hidden: Tensor, labels: Tensor, octaves: Tensor) -> dict[str, Any]:
    """Sums over the positions of a set, in total and by octave of the next token's frequency."""
    kept: list[Tensor] = []
    for some, wanted in zip(hidden.split(PIECE), labels.split(PIECE), strict=True):
        given = some.float()
        old, new = (given @ weight.T).log_softmax(-1), score(given).float().log_softmax(-1)
        best = old.argmax(-1, keepdim=True)
        score_of_best = new.gather(-1, best)
        rank = torch.where(score_of_best[:, 0].isfinite(), (new > score_of_best).sum(-1), len(weight))  # never: dropped
        divergence = torch.where(old > -60, old.exp() * (old - new), 0.0).sum(-1)
        after = wanted[:, None]
        columns = [
            divergence, -old.gather(-1, after)[:, 0], -new.gather(-1, after)[:, 0], best[:, 0] == wanted,
            new.argmax(-1) == wanted, *(rank < count for count in BEST),
        ]  # fmt: skip
        kept.append(torch.stack([column.double() for column in columns], 1))
    table = torch.cat(kept)
    names = ["kl", "old_nll", "new_nll", "old_top1", "new_top1", *(f"best_{count}" for count in BEST)]

    def sums(chosen: Tensor) -> dict[str, Any]:
        found = {name: float(value) for name, value in zip(names, table[chosen].sum(0), strict=True)}
        lost = ~torch.isfinite(table[chosen]).all(1)
        return {"positions": int(chosen.sum()), "impossible": int(lost.sum())} | {
            key: value if np.isfinite(value) else None for key, value in found.items()
        }

    everything = torch.ones(len(table), dtype=torch.bool)
    of_labels = octaves[labels[: len(table)]]
    parts = {str(octave): sums(of_labels == octave) for octave in of_labels.unique().tolist()}
    return {"all": sums(everything), "by_octave": parts}


def scoring(model: Any) -> Callable[[Tensor], Tensor]:
    """Hidden states `(positions, H)` → scores `(positions, V)` of a coded model, or of rows; dropped rows are NaN."""
    if isinstance(model, nn.Module):
        coded: Any = model
        return lambda given: coded.decision.logits(coded.get_output_embeddings()(given))
    rows, bias = model.nan_to_num(0.0), torch.where(model.isnan().any(1), -torch.inf, 0.0)
    return lambda given: given @ rows.T + bias


def measure(options: argparse.Namespace) -> None:
    """Build a head and measure it on every test set; its file is written last."""
    start, name = time.monotonic(), options.head
    model, how = (trained if name.startswith(("code", "adaptive", "trained")) else baseline)(name, options)
    score = scoring(model)
    weight = load_model(options.model, dtype="float32").get_output_embeddings().weight.detach()
    labels = states(options.cache, "learn")[1][written(options.cache) :]
    counts = torch.bincount(labels, minlength=len(weight))
    ranks = counts.argsort(descending=True, stable=True).argsort()
    octaves = (ranks + 1).log2().floor().long()
    sets = {}
    for test in SETS:
        hidden, labels = states(options.cache, test, options.test_positions)
        sets[test] = measured(score, weight, hidden, labels, octaves)
        print(name, test, sets[test]["all"], flush=True)
    found = {**how, "sets": sets, "wall_seconds": round(time.monotonic() - start)}
    (options.cache / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")


def collect(options: argparse.Namespace) -> None:
    """One result file of all heads that have been measured.

    Files named `mixture_code-…` are of codes that learnt without the model's own text where the others did.
    """
    files = sorted(options.cache.glob("*.json"))
    heads = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    for key, head in heads.items():  # of other heads and other text, the page tells the sums alone
        for name in set(SETS) - set(MIXTURE) if key in COMPARED else SETS:
            head["sets"].get(name, {}).pop("by_octave", None)
    shape = shape_of(options.model)
    config = {
        "model": Path(options.model).name, "shape": [shape.hidden_size, shape.num_classes],
        "positions": options.positions, "seed": 0,
    }  # fmt: skip
    origin = {**provenance(seed=0, sources=[]), "finished_at": utc_now()}
    Result(options.out.stem, config, {"heads": heads}, origin).write(options.out)


def main() -> None:
    """Parse the command line and do one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["head", "collect"])
    parser.add_argument("--cache", type=Path, required=True, help="folder written by frontier_real_states.py")
    parser.add_argument("--model", required=True)
    parser.add_argument(
        "--head",
        help="code-SHARE, adaptive-SHARE, trained_low_rank-SHARE; int8, int4, int3, int2, int4-corrected …, "
        "low_rank-SHARE, trimmed-SHARE",
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, help="of rows, instead of a share of their size")
    parser.add_argument("--code-rate", type=float, default=1e-2, help="2e-2 where steps are few")
    parser.add_argument("--positions", type=int, default=150_000)
    parser.add_argument("--test-positions", type=int, default=2550, help="of each test set")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    measure(options) if options.what == "head" else collect(options)


if __name__ == "__main__":
    main()
