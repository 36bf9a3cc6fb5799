"""Calibrates the code that screens a head: its length, its candidates, and what may be promised of them.

A token outside the candidates scores at most its score by the code plus what the code leaves out. With r the residual
of its row and h′ the whitened hidden state, that is r · h′ ≤ Σ_b ‖r_b‖ ‖h′_b‖ over blocks of coordinates b, by
Cauchy-Schwarz: a proof. A factor below 1 on one block of all coordinates is not a proof: it is chosen so that the
residuals of the winners stay below it at held-out positions, and a new position, drawn as they were, exceeds it with
the probability that the order statistic gives (V. Vovk, A. Gammerman, G. Shafer 2005, "Algorithmic Learning in a Random
World", chapter 2; V. Vovk 2012, "Conditional validity of inductive conformal predictors", proposition 2a).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.codes.additive import MAX_DIGITS
from codehead.codes.packing import slices
from codehead.errors import ConfigurationError
from codehead.models.hidden import Statistics
from codehead.screening.head import MORE
from codehead.screening.screen import Screen, Settings, block_norms, dtype_name, marks, probes
from codehead.screening.transform_coding import TransformCode, fit, pieces

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

LENGTHS = (256, 384, 512, 640, 768, 1024)
"""Code lengths to try: longer codes need fewer candidates."""
EXACT_DIGITS, PROOF_DIGITS, PROOF_BLOCKS = 8 / 3, 4, 16
"""Bits per hidden coordinate in mode "exact" and for its proofs, and the blocks that a proof's bound is summed over."""
FEW, MOST = 256, 4096
"""Candidates: the fewest of mode "exact", and the most of mode "fast"."""
TRIED, FIRST = 256, 2**18
"""Positions that decide how many candidates mode "exact" starts with, and the most that are looked at for it."""
SAVED = 8e6
"""Bytes of codewords that a prefix must save before it is scanned alone."""
SCANNED = 4096
"""Tokens that a prefix keeps."""
SPARE = 8
"""How many times fewer tokens the prefix must need at the positions that a code is fitted to: text of other kinds
needs more."""
APART = 4
"""How many times longer a byte of scattered rows takes to read than one of codewords."""
RESERVE = 4
"""How many times more tokens other positions need than those that a code is fitted to."""
STEP = 16
"""Candidates are a multiple of this: kernels then sum up a row as they do among all rows."""
CONFIDENCE = 0.95
CHUNK = 64
"""Positions whose logits are computed at a time."""


class Positions(NamedTuple):
    """Hidden states `(positions, H)` and the tokens `(positions,)` that the dense head finds best there."""

    hidden: Tensor
    best: Tensor


class Parts(NamedTuple):
    """Separate positions to fit a code, to calibrate what is promised of it, and to measure it."""

    statistics: Statistics
    fitted: Positions
    calibration: Positions
    test: Positions


def parted(head: nn.Linear, hidden: Tensor, progress: Progress) -> Parts:
    """Hidden states split in the order of the text, with the dense head's best tokens."""
    first, second = len(hidden) // 4, len(hidden) * 3 // 4
    if first < 2:
        raise ConfigurationError(f"{len(hidden)} hidden states are too few to screen by; give more text")
    if torch.equal(hidden, hidden[:1].expand_as(hidden)):
        raise ConfigurationError(f"all {len(hidden)} hidden states are the same; give text of more than one token")
    best = []
    for some in slices(len(hidden), CHUNK):
        best.append(F.linear(hidden[some].to(head.weight), head.weight, head.bias).argmax(-1))
        progress("the dense head's choices", some.stop, len(hidden))
    chosen = torch.cat(best)
    ends = ((0, first), (first, second), (second, len(hidden)))
    fitted, calibration, test = (Positions(hidden[start:end], chosen[start:end]) for start, end in ends)
    return Parts(Statistics.of(torch.zeros(len(head.weight)), fitted.hidden), fitted, calibration, test)


def fast(head: nn.Linear, parts: Parts, bits: int | None, recall: float, progress: Progress) -> Screen:
    """A code whose length is chosen where it is fitted, with as many candidates as the calibration positions need."""
    wanted = order_statistic(len(parts.calibration.best), recall, CONFIDENCE)
    made = _short(head, parts, bits, recall, progress)
    most = min(MOST, head.out_features)
    ranks = _ranks(made, parts.calibration, most, progress)
    needed = _needed(ranks, wanted)
    if needed > most:
        raise ConfigurationError(
            f"with bits={made.settings.bits} the dense head's choice is not among the best {most:,} candidates at "
            f"{recall:.4%} of positions; give more positions, more bits, or a lower recall"
        )
    made.settings = replace(
        made.settings, candidates=needed, promised=recall, confidence=CONFIDENCE,
        calibration_positions=len(ranks), test_positions=len(parts.test.best),
        measured=float((_ranks(made, parts.test, needed, progress) < needed).mean()),
    )  # fmt: skip
    return made


def _short(head: nn.Linear, parts: Parts, bits: int | None, recall: float, progress: Progress) -> Screen:
    """The code of `bits` bits, or of the length at which a step reads least, judged at the positions it is fitted to.

    Where scanning all bits would read too much, the longest code is taken and only a prefix of it scanned.
    """

    def coded(length: int) -> Screen:
        return _coded(head, parts, Settings(head.out_features, head.in_features, length), progress)

    lengths = sorted({min(length, MAX_DIGITS * head.in_features) for length in LENGTHS})
    longest = lengths[-1] if bits is None else bits
    if is_large(head.out_features, longest):
        return _prefixed(coded(longest), head, parts, recall, progress)
    if bits is not None:
        return coded(bits)
    return min(map(coded, lengths), key=lambda made: _cost(made, head, parts, recall, progress))


def is_large(classes: int, bits: int) -> bool:
    """Whether only a prefix is scanned of codes of `bits` bits for `classes` tokens."""
    return classes > SCANNED and classes * (bits - LENGTHS[0]) > 8 * SAVED


def _cost(made: Screen, head: nn.Linear, parts: Parts, recall: float, progress: Progress) -> float:
    """Bytes that a step reads, with those of rows weighted by their reading time."""
    ranks = _ranks(made, parts.fitted, min(MOST, head.out_features), progress)
    rows = RESERVE * _needed(ranks, math.ceil((1 + recall) / 2 * len(ranks)))
    return made.plane.nbytes + APART * rows * head.weight[0].nbytes


def _prefixed(made: Screen, head: nn.Linear, parts: Parts, recall: float, progress: Progress) -> Screen:
    """The same code, scanned by the shortest prefix that keeps the dense head's choices, or in full."""
    whole, few = made.settings, SCANNED // SPARE
    for prefix in (length for length in LENGTHS if length < whole.bits):
        trial = Screen(replace(whole, prefix=prefix, scanned=few))
        trial.load_state_dict({**made.state_dict(), "spans": trial.spans})
        _ready(trial, head, parts.fitted.hidden)
        if (_ranks(trial, parts.fitted, few, progress) < few).mean() >= (1 + recall) / 2:
            trial.settings = replace(trial.settings, scanned=SCANNED)
            trial.prepare(head.weight, head.bias)
            return trial
    return made


def _needed(ranks: np.ndarray, wanted: int) -> int:
    """How many candidates include the `wanted`-th of the ranks in ascending order, a multiple of STEP."""
    return -(-(int(np.sort(ranks)[wanted - 1]) + 1) // STEP) * STEP


def exact(head: nn.Linear, parts: Parts, kind: str, bits: int | None, progress: Progress) -> Screen:
    """A code with norms of its residuals; their factor is calibrated, or 1 for a proof."""
    classes, size = head.weight.shape
    proof = kind == "proof"
    length = 8 * round((PROOF_DIGITS if proof else EXACT_DIGITS) * size / 8) if bits is None else bits
    settings = Settings(
        classes, size, length, "exact", min(FEW, classes), blocks=min(PROOF_BLOCKS, size) if proof else 1
    )
    made = _coded(head, parts, settings, progress)
    count, promised = len(parts.calibration.best), 1.0
    if not proof:
        factor = float(_shortfalls(made, head, parts.calibration).max().clamp(min=0))
        made.settings = replace(made.settings, factor=min(factor, 1.0))
        _ready(made, head, parts.fitted.hidden)
        promised = (1 - CONFIDENCE) ** (1 / count)
    made.settings = replace(made.settings, candidates=_first(made, head, parts.calibration, progress))
    ranks = _ranks(made, parts.test, made.settings.candidates, progress)
    made.settings = replace(
        made.settings, promised=promised, confidence=1.0 if proof else CONFIDENCE, calibration_positions=count,
        test_positions=len(ranks), measured=float((ranks < made.settings.candidates).mean()),
    )  # fmt: skip
    return made


def _first(made: Screen, head: nn.Linear, positions: Positions, progress: Progress) -> int:
    """How many candidates a step of mode "exact" starts with: those with which it reads least over all its rounds."""
    classes = head.out_features
    most, few = min(FIRST, max(1, classes // MORE)), len(positions.best) // TRIED + 1  # beyond, the dense head decides
    needed = []
    for some in slices(len(positions.best), few * CHUNK):
        hidden, best = (part[some][::few] for part in positions)
        bias = 0.0 if head.bias is None else head.bias[best]
        scores = ((head.weight[best] * hidden).sum(1) + bias).double().numpy()
        needed.append((made.search.bounds(hidden, most) >= scores[:, None]).sum(1) + 1)
        progress("candidates", some.stop, len(positions.best))
    options = [FEW]
    while options[-1] * 2 <= min(most, FIRST // MORE):
        options.append(options[-1] * 2)
    return min(min(options, key=lambda count: _bytes(made, head, np.concatenate(needed), count)), classes)


def _bytes(made: Screen, head: nn.Linear, needed: np.ndarray, count: int) -> float:
    """Mean bytes that a step of mode "exact" reads, where `needed` candidates `(positions,)` are required."""
    total, tried = np.zeros(len(needed)), 0
    while not tried or count <= head.out_features // MORE:
        total += (needed > tried) * (made.bytes_read + APART * count * head.weight[0].nbytes)
        tried, count = count, MORE * count
    return float((total + (needed > tried) * head.weight.nbytes).mean())


def _coded(head: nn.Linear, parts: Parts, settings: Settings, progress: Progress) -> Screen:
    """A ready screen of a code of `settings.bits` bits."""
    code = fit(head.weight, parts.statistics, settings.bits)
    coded = int((code.digits > 0).sum())
    rank, dtype = code.digits.numel() if settings.blocks else coded, dtype_name(head.weight)
    made = Screen(replace(settings, rank=rank, dtype=dtype))
    _fill(made, code, head, progress)
    _ready(made, head, parts.fitted.hidden)
    return made


def _fill(made: Screen, code: TransformCode, head: nn.Linear, progress: Progress) -> None:
    rank, (coordinates, sizes) = made.settings.rank, code.columns
    made.coordinates.copy_(coordinates)
    for name, values in {
        "sizes": sizes, "mean": code.mean, "white": code.inverse[:rank], "common": code.centre[:rank],
        "probes": probes(head.weight), "marks": marks(head.weight),
    }.items():  # fmt: skip
        made.set(name, values)
    planes, norms = [], []
    for rows in pieces(head.weight, lambda done, total: progress(f"codewords of {code.length} bits", done, total)):
        encoded = code.encode(rows)
        planes.append(torch.from_numpy(encoded.plane))
        norms.append(block_norms(encoded.residual, made.settings.blocks))
    made.plane.copy_(torch.cat(planes))
    made.set("norms", torch.cat(norms))


def _ready(made: Screen, head: nn.Linear, hidden: Tensor) -> None:
    """Build the index, with tables balanced for typical hidden states."""
    made.prepare(head.weight, head.bias)
    made.set("spans", made.search.spans(hidden[:: max(1, len(hidden) // 256)]))
    made.prepare(head.weight, head.bias)


def _ranks(made: Screen, positions: Positions, most: int, progress: Progress) -> np.ndarray:
    """The rank `(positions,)` of the dense head's choice among the candidates, 0 for the first; `most` if absent."""
    found = []
    for some in slices(len(positions.best), CHUNK):
        hits = made.search.best(positions.hidden[some], most).ids == positions.best[some].numpy()[:, None]
        found.append(np.where(hits.any(1), hits.argmax(1), most))
        progress("candidates", some.stop, len(positions.best))
    return np.concatenate(found)


def _shortfalls(made: Screen, head: nn.Linear, positions: Positions) -> Tensor:
    """How much of ‖r‖ ‖h′‖ the code leaves out of the scores of the dense head's choices: `(positions,)`."""
    chosen = positions.best
    white = made.search.whitened(positions.hidden)
    bits = np.unpackbits(made.plane[chosen].numpy(), axis=1, count=made.settings.bits, bitorder="little")
    coded = torch.from_numpy((made.search.bit_logits(white) * (bits - 0.5)).sum(1)).float() + white @ made.get("common")
    rows = head.weight[chosen].float()
    scores = (rows * (positions.hidden - made.get("mean"))).sum(1)
    return (scores - coded) / (made.get("norms")[chosen, 0] * block_norms(white, 1)[:, 0])


def order_statistic(count: int, share: float, confidence: float) -> int:
    """The rank, from 1, of the value among `count` ascending ones that bounds a new one with probability `share`.

    Over independent draws of the values, from any distribution, that probability is at least `share` with this
    `confidence`. It is the least m with P(Binomial(count, share) ≥ m) ≤ 1 − confidence.

    Raises:
        ConfigurationError: there are too few values for that.
    """
    failures = torch.distributions.Binomial(count, torch.tensor(1 - share, dtype=torch.float64))
    below = failures.log_prob(torch.arange(count + 1, dtype=torch.float64)).exp().cumsum(0)  # P(failures ≤ 0, 1, …)
    allowed = int((below <= 1 - confidence).sum())
    if not allowed:
        needed = math.ceil(math.log(1 - confidence) / math.log(share))
        raise ConfigurationError(
            f"a recall of {share:.4%} cannot be promised with {confidence:.0%} confidence from {count:,} calibration "
            f"positions, half of all; give at least {needed:,} of them, or a lower recall"
        )
    return count - allowed + 1
