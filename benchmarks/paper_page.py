"""The tables of docs/paper.md: the paper's claims beside figures from the committed result files.

python benchmarks/paper_page.py
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pages import filled

from codehead.lab.protocols.protocol import find
from codehead.lab.reports.evidence import read_evidence
from codehead.lab.reports.paper import TABLES, PaperRow
from codehead.lab.reports.summary import Estimate, Row, label_of, summarise
from codehead.lab.reports.tables import percent
from codehead.lab.result import Result

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/paper.md"
RESULTS = ROOT / "results"
REAL, RATES = "real-1", "real-rates"
REAL_BACKBONES = ("llama-smollm2-135m", "gemma-3-270m")
NOT_MEASURED = "not measured"
ENOUGH = 0.98
COMPARED = ("small-1", "small-2", "small-3", "tinystories-8192", "frontier-5", REAL)
"""Protocols that are searched for heads that keep ENOUGH."""
MEASURES = {"share": "of top-1", "f1_share": "of F1"}
LOSS = "train_loss"


@dataclass(frozen=True)
class Head:
    """A cell of a protocol."""

    protocol: str
    cell: str
    setting: str = ""

    @property
    def is_measured(self) -> bool:
        """Whether there is a result of it."""
        return any(self._is(row) for row in rows(self.protocol))

    @property
    def row(self) -> Row:
        """The figures from its result files."""
        return next(row for row in rows(self.protocol) if self._is(row))

    def _is(self, row: Row) -> bool:
        return (row.cell, row.setting) == (self.cell, self.setting)

    def linked(self, text: str) -> str:
        """A text with a link to the first seed's result file; those of other seeds are beside it."""
        name = "--".join(part for part in (self.setting, self.cell, "seed-0") if part)
        return f"[{text}](../results/{self.protocol}/{name}.json)"


@dataclass(frozen=True)
class Share:
    """The paper's claim that a head keeps a share of Softmax, and our heads of that size."""

    claim: str
    kept: float
    metric: str
    small: Head
    real: Head | None = None
    ours: Head | None = None

    def cells(self) -> list[str]:
        """A line of the table."""
        said = f"{self.kept:.2%}".replace(".00%", "%")
        return [self.claim, f"{said} {MEASURES[self.metric]}", *map(self._found, (self.small, self.real, self.ours))]

    def _found(self, head: Head | None) -> str:
        if head is None or not head.is_measured:
            return NOT_MEASURED
        value = head.row.values[self.metric]
        size = f" with {percent(head.row.parameter_share)}"
        return f"{verdict(value, self.kept)}: {head.linked(percent(value) + ' ' + MEASURES[self.metric])}{size}"


@dataclass(frozen=True)
class Gain:
    """The paper's claim that one head beats another, in F1 or in the loss per node."""

    claim: str
    said: str
    small: tuple[Head, Head]
    real: tuple[Head, Head]
    in_loss: bool = False

    def cells(self) -> list[str]:
        """A line of the table."""
        return [self.claim, self.said, self._found(self.small), self._found(self.real), "–"]

    def _found(self, pair: tuple[Head, Head]) -> str:
        if not all(head.is_measured for head in pair):
            return NOT_MEASURED
        return lost(*pair) if self.in_loss else "; ".join(gained(metric, *pair) for metric in MEASURES)


def gained(metric: str, better: Head, worse: Head) -> str:
    """Shares of Softmax of two heads, and whether the first keeps more."""
    found = [head.row.values[metric] for head in (better, worse)]
    texts = [head.linked(percent(value)) for head, value in zip((better, worse), found, strict=True)]
    return f"{order(*found)}: {texts[0]} against {texts[1]} {MEASURES[metric]}"


def lost(better: Head, worse: Head) -> str:
    """Training losses per node of two heads, and whether the first loses less."""
    found = [head.row.values[LOSS] for head in (better, worse)]
    texts = [head.linked(f"{value.mean:.4f}") for head, value in zip((better, worse), found, strict=True)]
    return f"{order(*reversed(found))}: {texts[0]} against {texts[1]}"


def backbones() -> list[str]:
    """Protocol 4: the same kind of head on several backbones."""
    scores = [row.f1 for row in TABLES[4].rows if row.f1]
    said = f"F1 {min(scores):.4f} to {max(scores):.4f}"
    small = shares("small-4", "minrandom-mtl", "opt", "qwen2", "llama")
    real, ours = (shares("real-4", cell, *REAL_BACKBONES) for cell in ("minrandom-mtl", "converted-15"))
    return ["It works equally well on other backbones", said, small, real, ours]


def shares(protocol: str, cell: str, *settings: str) -> str:
    """How much of top-1 a kind of head keeps on several backbones."""
    heads = {name: Head(protocol, cell, name) for name in settings}
    texts = [f"{name} {head.linked(percent(head.row.values['share']))}" for name, head in heads.items()]
    return f"{', '.join(texts)} of top-1"


def verdict(value: Estimate, kept: float) -> str:
    """Whether a share is reached; open where the interval over seeds holds both."""
    if abs(value.mean - kept) <= (value.half_width or 0.0):
        return "open"
    said = "**yes**" if value.mean > kept else "**no**"
    return said if value.half_width is not None else f"{said}, one seed"


def order(better: Estimate, worse: Estimate) -> str:
    """Whether the first is above the second; open where their intervals over seeds overlap."""
    if abs(better.mean - worse.mean) <= (better.half_width or 0.0) + (worse.half_width or 0.0):
        return "open"
    said = "yes" if better.mean > worse.mean else "**no**"
    return said if better.half_width is not None else f"{said}, one seed"


@cache
def rows(protocol: str) -> tuple[Row, ...]:
    """The heads of a protocol; none if it was not run."""
    folder = RESULTS / protocol
    return tuple(summarise(read_evidence(folder))) if folder.is_dir() else ()


def _said(number: int, better: tuple[str, int, int], worse: tuple[str, int, int]) -> str:
    """The F1 of two rows of a table of the paper, each by its design, bits and width."""
    scores = {(row.design, row.bits, row.width): row.f1 for row in TABLES[number].rows}
    return f"yes: F1 {scores[better]:.4f} against {scores[worse]:.4f}"


def claims() -> str:
    """The paper's claims about accuracy, and our results."""
    small = {name: Head("small-1", name) for name in ("minrandom-50", "minimal-mtl", "minrandom-50-mtl")}
    real = {name: Head(REAL, name) for name in (*small, "converted-15", "converted-50")}
    lines = [
        Share("Half of the parameters keep most of F1 in fine-tuning", 0.8338, "f1_share",
              small["minrandom-50-mtl"], real["minrandom-50-mtl"], real["converted-50"]),
        Share("About 15% of the parameters keep three quarters of F1", 0.75, "f1_share",
              small["minimal-mtl"], real["minimal-mtl"], real["converted-15"]),
        Share("In pretraining, half of the parameters keep nine tenths of top-1", 0.9, "share",
              Head("tinystories-8192", "minrandom-50-mtl-half", "1.2M")),
        Gain("Random bits after the minimal ones help", _said(2, ("minrandom", 50, 512), ("minimal", 16, 512)),
             (small["minrandom-50-mtl"], small["minimal-mtl"]), (real["minrandom-50-mtl"], real["minimal-mtl"])),
        Gain("A hidden layer per bit raises accuracy", "yes", (small["minrandom-50-mtl"], small["minrandom-50"]),
             (real["minrandom-50-mtl"], real["minrandom-50"])),
        Gain("A hidden layer per bit lowers the training loss per node", "yes",
             (small["minrandom-50-mtl"], small["minrandom-50"]), (real["minrandom-50-mtl"], real["minrandom-50"]),
             in_loss=True),
        Gain("Longer codes help", _said(3, ("minrandom", 100, 512), ("minrandom", 25, 512)),
             (Head("small-3", "minrandom-100-mtl"), Head("small-3", "minrandom-25-mtl")),
             (Head("real-3", "minrandom-100-mtl"), Head("real-3", "minrandom-25-mtl"))),
        Gain("Wider layers help", _said(2, ("minrandom", 50, 1024), ("minrandom", 50, 128)),
             (Head("small-2", "minrandom-50-mtl-160"), Head("small-2", "minrandom-50-mtl-20")),
             (Head("real-2", "minrandom-50-mtl-1024"), Head("real-2", "minrandom-50-mtl-128"))),
    ]  # fmt: skip
    header = ["Claim", "The paper", "Models of 1M to 4M parameters", "SmolLM2-135M", "SmolLM2-135M, our head"]
    return _table(header, [*(line.cells() for line in lines), backbones()])


def sizes() -> str:
    """Parameters and time of the four heads, as shares of Softmax's: the paper's and ours."""
    lines = []
    softmax = TABLES[1].rows[0]
    cells = ("minimal", "minrandom-50", "minimal-mtl", "minrandom-50-mtl")
    for said, cell in zip(TABLES[1].rows[1:], cells, strict=True):
        found = [_size(Head(protocol, cell)) for protocol in ("small-1", REAL)]
        lines.append([said.label, *_said_size(said, softmax), *found[0], *found[1]])
    ours = [Head(REAL, cell) for cell in ("converted-15", "converted-50")]
    lines += [[head.row.name, "–", "–", "–", "–", *_size(head)] for head in ours if head.is_measured]
    header = ["Head"]
    for where in ("the paper", "small-1", REAL):
        header += [f"{where}: parameters", "time"]
    return _table(header, lines)


def _said_size(row: PaperRow, softmax: PaperRow) -> tuple[str, str]:
    assert row.parameters and row.seconds and softmax.parameters and softmax.seconds
    return f"{row.parameters / softmax.parameters:.3%}", percent(row.seconds / softmax.seconds)


def _size(head: Head) -> tuple[str, str]:
    if not head.is_measured:
        return NOT_MEASURED, NOT_MEASURED
    reference = next(one for one in rows(head.protocol) if one.is_reference)
    times = [one.times["answer_seconds"] for one in (head.row, reference) if one.times]
    ratio = percent(times[0] / times[1]) if len(times) == 2 else NOT_MEASURED
    return head.linked(f"{head.row.parameter_share:.3%}"), ratio


def enough() -> str:
    """The smallest head of each protocol that keeps ENOUGH, by bytes, or parameters where bytes were not kept."""
    lines = []
    for protocol in COMPARED:
        found = [_smallest(protocol, metric) for metric in MEASURES]
        lines.append([f"[{protocol}](results/{protocol}/report.md)", *found])
    return _table(["Protocol", f"keeps {ENOUGH:.0%} of top-1", f"keeps {ENOUGH:.0%} of F1"], lines)


def _smallest(protocol: str, metric: str) -> str:
    measured = [row for row in rows(protocol) if not row.is_reference and metric in row.values]
    if not measured:
        return NOT_MEASURED
    keeping = [row for row in measured if row.values[metric].mean >= ENOUGH]
    if keeping:
        return _told(protocol, min(keeping, key=_size_share), metric)
    return f"none; the best is {_told(protocol, max(measured, key=lambda row: row.values[metric].mean), metric)}"


def _size_share(row: Row) -> float:
    return row.byte_share or row.parameter_share or 1.0


def _told(protocol: str, row: Row, metric: str) -> str:
    kept = Head(protocol, row.cell, row.setting).linked(percent(row.values[metric]))
    return f"{row.name}, {percent(_size_share(row))} of the {'bytes' if row.byte_share else 'parameters'}: {kept}"


def budget() -> str:
    """How long the real model was trained, in words."""
    files = sorted((RESULTS / REAL).glob("*.json"))
    found = [Result.read(path) for path in files]
    training = found[0].config["run"]["training"]
    steps, records = training["max_steps"], training["max_steps"] * training["per_device_train_batch_size"]
    seeds = len({result.config["seed"] for result in found})
    missing = [entry.name for entry in find(REAL).entries if not Head(REAL, entry.name).is_measured]
    minutes = sum(result.metrics["train_seconds"] for result in found) / 60
    tokens = found[0].metrics["test"]["tokens"]
    prompts = found[0].metrics["answers"]["prompts"]
    text = (
        f"Every head of [{REAL}](results/{REAL}/report.md) was trained for {steps} steps on {records:,} records of "
        f"Alpaca, with {seeds} seed{'s' if seeds > 1 else ''}: {minutes:.0f} minutes of training in all. Figures are "
        f"over {tokens:,} held-out tokens and {prompts} generated answers."
        + (f" Not run yet: {', '.join(missing)}." if missing else "")
    )
    return textwrap.fill(text, 120, break_on_hyphens=False)


def rates() -> str:
    """The learning rates that were tried, and what heads reached with them on the validation split."""
    short = {row.label: row.name for row in rows(REAL)}
    tried: dict[str, list[Result]] = {}
    for path in sorted((RESULTS / RATES).glob("*.json")):
        result = Result.read(path)
        tried.setdefault(short.get(label_of(result), label_of(result)), []).append(result)
    lines = []
    for label, results in tried.items():
        for result in sorted(results, key=_rate):
            name, found = result.name.split("/")[1], result.metrics["validation"]
            link = f"[{found['top1']:.2%}](../results/{RATES}/{name}--seed-0.json)"
            lines.append([label, f"{_rate(result):.0e}", link, f"{found['perplexity']:,.2f}"])
    return _table(["Head", "Learning rate", "Top-1, validation", "Perplexity, validation"], lines)


def _rate(result: Result) -> float:
    return float(result.config["run"]["head_learning_rate"])


def _table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(header)
    body = [head, ["---"] * len(head), *map(list, lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in body)


def page(text: str) -> str:
    """The page with its figures from the result files."""
    for make in (budget, claims, sizes, enough, rates):
        text = filled(text, make.__name__, make())
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
