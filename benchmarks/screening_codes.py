"""Which code finds the dense head's choice with the fewest bits, on hidden states of a real model.

    python benchmarks/screening_codes.py --model FOLDER --data TEXT --out results/benchmarks/screening-NAME-codes.json

Every code approximates the white rows y of a head (see `codehead.screening.transform_coding`), and every token also has
its bias w · μ. Counts only, no step times. `transform coding` is what screening uses. `RaBitQ` (arXiv
2405.12497): signs of as many principal coordinates as there are bits, rotated at random, scaled per token. `additive`:
residual quantisation (Y. Chen et al. 2010) by FAISS with books of 256 entries, a beam of 4; `additive, nibbles` with
books of 16, as a scan in registers can look them up. `learned` starts from transform
coding and is trained for recall: the cross-entropy of the dense head's choice in a softmax over the candidates that the
code finds; `head learned` leaves the codewords as they are, `all learned` changes them too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import torch
from screening import SEED, recorded, states
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.models.hidden import Statistics
from codehead.screening.calibration import Positions
from codehead.screening.transform_coding import TransformCode, fit

BITS = (256, 512)
BEST = (16, 64, 256, 1024)
"""How many of a code's best tokens are searched."""
PIECE = 64
"""Positions at a time."""
SAMPLE, BEAM = 2**14, 4
"""Rows that the books of additive codes are fitted to, and the beam width."""
BATCH, CANDIDATES = 128, 256
"""Per training step: positions, and tokens in its softmax."""
RATES = (1e-4, 1e-3)
"""Learning rates to try; the one with the higher recall on a part of the positions is used."""
NEAR = 0.005
"""The initial distance of a learned bit from its sign change."""


Approximate = tuple[Tensor, Tensor]
"""White rows `(V, H)` as a code has them, and biases `(V,)`."""


class White(NamedTuple):
    """A head and its hidden states in coordinates where the hidden states are white."""

    rows: Tensor
    """`(V, H)`: y."""
    biases: Tensor
    """`(V,)`."""
    learn: Positions
    """For fitting and training; the last tenth chooses the rate."""
    test: Positions


def white(weight: Tensor, hidden: Tensor) -> White:
    """The white rows of a head and the hidden states as they see them; a quarter of the positions is for the test."""
    head = nn.Linear(weight.shape[1], 1, bias=False)
    head.weight, head.out_features = nn.Parameter(weight, requires_grad=False), len(weight)
    best = torch.cat([head(some).argmax(-1) for some in hidden.split(PIECE)])
    cut = len(hidden) * 3 // 4
    code = fit(weight, Statistics.of(torch.zeros(len(weight)), hidden[:cut]), BITS[0])
    rows = weight @ code.directions.float() - code.centre.float()
    given = (hidden - code.mean.float()) @ code.inverse.T.float()
    learn, test = Positions(given[:cut], best[:cut]), Positions(given[cut:], best[cut:])
    return White(rows, weight @ code.mean.float(), learn, test)


def ranks(rows: Tensor, biases: Tensor, positions: Positions) -> np.ndarray:
    """The rank of the dense head's choice among all tokens by approximate rows `(V, H)`: 0 for the first."""
    found = []
    for some, best in zip(positions.hidden.split(PIECE), positions.best.split(PIECE), strict=True):
        scores = torch.addmm(biases, some, rows.T)
        found.append((scores > scores.gather(1, best[:, None])).sum(1))
    return torch.cat(found).numpy()


def transform(weight: Tensor, code: TransformCode, of: White) -> Tensor:
    """The rows as approximated by transform coding."""
    return torch.cat([of_some - code.encode(rows).residual for rows, of_some in _split(weight, of.rows)])


def _split(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(8192) for tensor in tensors), strict=True)


def rabitq(rows: Tensor, bits: int) -> Tensor:
    """Signs of rotated coordinates, each row scaled so that its own score is unbiased; other coordinates are 0."""
    used = rows[:, :bits]
    noise = torch.randn(used.shape[1], used.shape[1], generator=torch.Generator().manual_seed(SEED))
    rotated = used @ torch.linalg.qr(noise).Q
    scales = rotated.square().sum(1) / rotated.abs().sum(1).clamp(min=1e-9)
    approximate = (torch.where(rotated >= 0, 1.0, -1.0) * scales[:, None]) @ torch.linalg.qr(noise).Q.T
    return F.pad(approximate, (0, rows.shape[1] - used.shape[1]))


def additive(rows: Tensor, bits: int, digits: int) -> Tensor:
    """The rows as approximated by residual quantisation with books of 2^digits entries."""
    quantizer = faiss.ResidualQuantizer(rows.shape[1], bits // digits, digits)
    quantizer.max_beam_size = BEAM
    some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))[:SAMPLE]
    quantizer.train(rows[some].numpy())
    said = [quantizer.decode(quantizer.compute_codes(part.numpy())) for (part,) in _split(rows)]
    return torch.from_numpy(np.concatenate(said))


class Learned(nn.Module):
    """Codewords and a linear head: a score is Σ_j b_j a_j · h′ plus a bias."""

    def __init__(self, signs: Tensor, head: Tensor, biases: Tensor) -> None:
        super().__init__()
        self.bits = nn.Embedding.from_pretrained(signs * NEAR, freeze=False, sparse=True)
        self.biases = nn.Embedding.from_pretrained(biases[:, None].clone(), freeze=False, sparse=True)
        self.head = nn.Parameter(head.clone())

    def scores(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """`(positions, k)` of some tokens `(positions, k)`; gradients pass through the sign unchanged."""
        kept = self.bits(tokens)
        symbols = kept + (kept.sign() - kept).detach()
        return (symbols @ (hidden @ self.head.T)[:, :, None])[..., 0] + self.biases(tokens)[..., 0]

    @property
    def rows(self) -> Tensor:
        """`(V, H)`."""
        return self.bits.weight.detach().sign() @ self.head.detach()


def start(weight: Tensor, code: TransformCode, biases: Tensor) -> Learned:
    """Transform coding as codewords and a linear head."""
    planes = np.concatenate([code.encode(rows).plane for (rows,) in _split(weight)])
    bits = np.unpackbits(planes, axis=1, count=code.length, bitorder="little")
    coordinates, sizes = code.columns
    head = F.one_hot(coordinates, weight.shape[1]) * (sizes / 2)[:, None]
    return Learned(torch.from_numpy(bits).float() * 2 - 1, head.float(), biases)


def learn(model: Learned, positions: Positions, rate: float, codewords: bool, steps: int) -> None:
    """Train for recall, in a softmax over the candidates that the code finds."""
    model.bits.requires_grad_(codewords)
    tables = [model.bits, model.biases] if codewords else [model.biases]
    share = {"params": [model.head], "lr": rate * float(model.head.detach().abs().max())}
    optimizers = [torch.optim.Adam([share]), torch.optim.SparseAdam([table.weight for table in tables], lr=rate)]
    generator = torch.Generator().manual_seed(SEED)
    for step in range(steps):
        some = torch.randint(len(positions.best), (BATCH,), generator=generator)
        hidden, best = positions.hidden[some], positions.best[some]
        with torch.no_grad():
            logits = torch.addmm(model.biases.weight[:, 0], hidden @ model.head.T, model.bits.weight.sign().T)
            logits.scatter_(1, best[:, None], torch.inf)  # the dense head's choice is the first candidate
            tokens = logits.topk(CANDIDATES, dim=1).indices
        with torch.enable_grad():
            loss = F.cross_entropy(model.scores(hidden, tokens), (tokens == best[:, None]).int().argmax(1))
            loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 1 - 1 / (steps - step) if step else 1  # down to 0, evenly
            optimizer.step()
        model.zero_grad()


def best_learned(make: Callable[[], Learned], positions: Positions, codewords: bool, steps: int) -> Learned:
    """A code trained with the better of the rates."""
    cut = len(positions.best) * 9 // 10
    kept, held = (Positions(*(part[piece] for part in positions)) for piece in (slice(cut), slice(cut, None)))
    found = []
    for rate in RATES:
        model = make()
        learn(model, kept, rate, codewords, steps)
        found.append((np.log1p(ranks(model.rows, model.biases.weight.detach()[:, 0], held)).mean(), rate, model))
        print(f"rate {rate}: {found[-1][0]:.4f}", flush=True)
    return min(found, key=lambda one: one[:2])[2]


def codes(weight: Tensor, hidden: Tensor, of: White, bits: int, steps: int) -> dict[str, Callable[[], Approximate]]:
    """Every code of so many bits, by its name."""
    code = fit(weight, Statistics.of(torch.zeros(len(weight)), hidden[: len(of.learn.best)]), bits)

    def learned(codewords: bool) -> Approximate:
        model = best_learned(lambda: start(weight, code, of.biases), of.learn, codewords, steps)
        return model.rows, model.biases.weight.detach()[:, 0]

    return {
        "transform coding": lambda: (transform(weight, code, of), of.biases),
        "transform coding, head learned": lambda: learned(codewords=False),
        "transform coding, all learned": lambda: learned(codewords=True),
        "RaBitQ": lambda: (rabitq(of.rows, bits), of.biases),
        "additive": lambda: (additive(of.rows, bits, 8), of.biases),
        "additive, nibbles": lambda: (additive(of.rows, bits, 4), of.biases),
    }


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Recall of the dense head's choice by every code."""
    weight, hidden = states(options)
    of, found = white(weight, hidden), {}
    for bits in options.bits:
        for name, make in codes(weight, hidden, of, bits, options.steps).items():
            if options.only and name not in options.only:
                continue
            began = time.perf_counter()
            places = ranks(*make(), of.test)
            found[f"{name}, {bits} bits"] = told = {
                "bits": bits, "positions": len(places), "seconds": round(time.perf_counter() - began),
                "recall": {str(count): float((places < count).mean()) for count in BEST},
            }  # fmt: skip
            print(name, told, flush=True)
    return {"shape": list(weight.shape), "codes": found}


def main() -> None:
    """Parse the command line, measure, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="text: hub id or local file")
    parser.add_argument("--positions", type=int, default=40_000)
    parser.add_argument("--bits", type=int, nargs="+", default=list(BITS))
    parser.add_argument("--steps", type=int, default=500, help="of learning")
    parser.add_argument("--only", nargs="*", default=[], help="names of codes")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(namespace=argparse.Namespace(shape=None, screened=None, prompts=None))
    recorded("screening-codes", options, measure)


if __name__ == "__main__":
    main()
