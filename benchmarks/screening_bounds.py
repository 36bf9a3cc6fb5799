"""How many tokens different bounds leave as possible choices of a head, on hidden states of a real model.

    python benchmarks/screening_bounds.py --model FOLDER --data TEXT --out results/benchmarks/screening-NAME-bounds.json

A token is possible at a position if its bound is not below the best score there: an exact method multiplies the rows of
all possible tokens. Counts only, no times. `norms`: ‖w‖ ‖h‖. `clusters`: CSV-Decode (arXiv 2511.21702), c · h + R ‖h‖
for the centroid and radius of the token's cluster. `code`: both certificates of mode "exact". `code by parts`:
RecJPQPrune (arXiv 2505.00560), which scores tokens by the same codewords, one half byte at a time, the best half bytes
first, until none of the remaining tokens can win; here the count is of tokens whose codewords are read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from screening import SEED, quiet, recorded, states
from torch import Tensor, nn

from codehead.decoding.fast_scan import bit_tables
from codehead.screening import calibration
from codehead.screening.screen import CERTIFICATES, Screen

CLUSTERS = (256, 1024, 4096)
PIECE = 50
"""Positions at a time."""


class Left(NamedTuple):
    """The tokens that a bound leaves."""

    tokens: np.ndarray
    """`(positions,)`: how many tokens are possible."""
    read: float
    """Bytes that the bound itself reads at a step."""


def by_norms(weight: Tensor, hidden: Tensor, best: Tensor) -> Left:
    """Cauchy–Schwarz with the whole row."""
    norms = weight.norm(dim=1)
    counts = [(norms * h.norm() >= score).sum() for h, score in zip(hidden, best, strict=True)]
    return Left(np.array([int(count) for count in counts]), norms.nbytes)


def by_clusters(weight: Tensor, hidden: Tensor, best: Tensor, count: int) -> Left:
    """A centroid and a radius for all tokens of a cluster."""
    means = faiss.Kmeans(weight.shape[1], count, niter=10, seed=SEED, max_points_per_centroid=64)
    means.train(weight.numpy())
    distances, members = (torch.from_numpy(part[:, 0]) for part in means.index.search(weight.numpy(), 1))
    radii = torch.zeros(count).scatter_reduce(0, members, distances.clamp(min=0).sqrt(), "amax")
    sizes = torch.bincount(members, minlength=count)
    bounds = hidden @ torch.from_numpy(means.centroids).T + hidden.norm(dim=1, keepdim=True) * radii
    return Left(((bounds >= best[:, None]) * sizes).sum(1).numpy(), means.centroids.nbytes + radii.nbytes)


def by_code(made: Screen, hidden: Tensor, best: Tensor) -> Left:
    """The certificate of mode "exact", over the tokens in the order of their bounds."""
    classes, counts = made.settings.num_classes, []
    for some, scores in zip(hidden.split(PIECE), best.split(PIECE), strict=True):
        bounds = made.search.bounds(some, classes // 4)
        counts.append((bounds >= scores[:, None].double().numpy()).sum(1))
    return Left(np.concatenate(counts), made.bytes_read)


def by_parts(made: Screen, hidden: Tensor) -> Left:
    """The tokens whose codewords are read until the best score by the code is certain."""
    search = made.search
    codes, numbers = nibbles(made.plane.numpy()), search.numbers
    biases = np.take_along_axis(numbers.tables, nibbles(numbers.plane).T, axis=1).sum(0)
    tables = bit_tables(search.bit_logits(search.whitened(hidden)))
    counts = [pruned(table, codes[:, : len(table)], biases) for table in tables]
    return Left(np.array(counts), made.plane.nbytes)


def nibbles(plane: np.ndarray) -> np.ndarray:
    """The halves of packed bytes `(V, bytes)`, low ones first: `(V, 2 bytes)`."""
    return np.stack([plane & 15, plane >> 4], axis=2).reshape(len(plane), -1)


def pruned(table: np.ndarray, codes: np.ndarray, biases: np.ndarray) -> int:
    """How many of the codes `(V, M)` are scored by a table `(M, 16)` until no other can be the best."""
    values, order = -np.sort(-table, axis=1), np.argsort(-table, axis=1)
    parts, turn = np.arange(len(table)), np.zeros(len(table), dtype=int)
    scores = table[parts, codes].sum(1) + biases
    read, most = np.zeros(len(codes), dtype=bool), biases.max()
    while values[parts, turn].sum() + most > np.where(read, scores, -np.inf).max():
        part = int(values[parts, turn].argmax())
        read |= codes[:, part] == order[part, turn[part]]
        turn[part] += 1
        if turn[part] == table.shape[1]:
            break
    return int(read.sum())


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All bounds at the same positions."""
    weight, hidden = states(options)
    head = nn.Linear(weight.shape[1], 1, bias=False)
    head.weight, head.out_features = nn.Parameter(weight, requires_grad=False), len(weight)
    parts = calibration.parted(head, hidden, quiet)
    some = parts.test.hidden[:: max(1, len(parts.test.hidden) // options.tried)]
    best = torch.cat([(piece @ weight.T).amax(1) for piece in some.split(PIECE)])
    found = {"norms": by_norms(weight, some, best)}
    found |= {f"clusters, {count:,}": by_clusters(weight, some, best, count) for count in CLUSTERS}
    for certificate in CERTIFICATES:
        made = calibration.exact(head, parts, certificate, None, quiet)
        found[f"code of {made.settings.bits:,} bits, {certificate}"] = by_code(made, some, best)
    found[f"code of {made.settings.bits:,} bits, by parts"] = by_parts(made, some[: options.by_parts])
    return {
        "shape": list(weight.shape),
        "bounds": {name: told(left, weight[0].nbytes, name.endswith("by parts")) for name, left in found.items()},
    }


def told(left: Left, row: int, reads_codes: bool) -> dict[str, float]:
    """The figures of a bound, with rows of so many bytes."""
    mean = float(left.tokens.mean())
    return {
        "positions": len(left.tokens),
        "median": float(np.median(left.tokens)),
        "percentile_99": float(np.quantile(left.tokens, 0.99)),
        "mean": mean,
        "bytes_read": left.read if reads_codes else left.read + mean * row,
    }


def main() -> None:
    """Parse the command line, measure, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="text: hub id or local file")
    parser.add_argument("--positions", type=int, default=12_000)
    parser.add_argument("--tried", type=int, default=500, help="held-out positions for testing the bounds")
    parser.add_argument("--by-parts", type=int, default=20, help="of these, for the slowest to count")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(namespace=argparse.Namespace(shape=None, screened=None, prompts=None))
    recorded("screening-bounds", options, measure)


if __name__ == "__main__":
    main()
