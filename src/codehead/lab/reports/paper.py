"""The four tables of the paper, as data.

Source: Agarwal, "Efficient Implementation of LLMs: an ECOC-based approach to reducing the vocabulary bottleneck",
Imperial College London with Amazon Web Services, 2024, and the paper that followed it
(https://openreview.net/forum?id=NNkDZsBu82).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codehead.lab.reports.summary import Row, by_setting, setting_title
from codehead.lab.reports.tables import ABSENT, Heading, Table, mean_node_loss, mean_of, percent, timed

SOURCE = (
    "Agarwal, “Efficient Implementation of LLMs: an ECOC-based approach to reducing the vocabulary bottleneck”, 2024"
)
SOURCE_ADDRESS = "https://openreview.net/forum?id=NNkDZsBu82"
BACKBONE = "OPT-1.3B"
ENCODER = "roberta-large"


@dataclass(frozen=True)
class PaperRow:
    """One row of a table. Scores that the table lacks are None."""

    design: str | None  # None: Softmax
    head: str = "mtl"
    bits: int = 0
    width: int = 512
    parameters: int = 0  # of the last layer; 0 where the table does not say
    seconds: int = 0  # of inference on one evaluation set; 0 where the table does not say
    loss: float | None = None  # final mean training loss per node
    precision: float | None = None  # BERTScore
    recall: float | None = None
    f1: float | None = None
    backbone: str = BACKBONE

    @property
    def label(self) -> str:
        """The configuration in the paper's notation."""
        if self.design is None:
            return "Softmax"
        design = {"minimal": "Minimal", "minrandom": "MinRandom"}[self.design]
        return f"{design} {'MTL-ECOC' if self.head == 'mtl' else 'ECOC'} ({self.bits}, {self.width})"


@dataclass(frozen=True)
class PaperTable:
    """One protocol of the paper."""

    number: int
    title: str
    rows: tuple[PaperRow, ...]


def _scored(
    design: str, bits: int, width: int, scores: tuple[float, float, float, float], backbone: str = BACKBONE
) -> PaperRow:
    loss, precision, recall, f1 = scores
    return PaperRow(design, "mtl", bits, width, loss=loss, precision=precision, recall=recall, f1=f1, backbone=backbone)


TABLES = {
    table.number: table
    for table in (
        PaperTable(
            1,
            "configurations of the head",
            (
                PaperRow(None, parameters=102_957_056, seconds=12 * 60 + 50),
                PaperRow("minimal", "linear", 16, 0, parameters=32_768, seconds=65),
                PaperRow("minrandom", "linear", 50, 0, parameters=102_400, seconds=60 + 45),
                PaperRow("minimal", "mtl", 16, 512, parameters=16_785_408, seconds=7 * 60),
                PaperRow("minrandom", "mtl", 50, 512, parameters=52_454_400, seconds=8 * 60 + 10),
            ),
        ),
        PaperTable(
            2,
            "hidden width of MTL-ECOC",
            (
                _scored("minimal", 16, 1024, (0.2305, 0.6023, 0.6047, 0.6034)),
                _scored("minimal", 16, 512, (0.2464, 0.5924, 0.6126, 0.6023)),
                _scored("minimal", 16, 128, (0.2657, 0.5749, 0.5925, 0.5835)),
                _scored("minrandom", 50, 1024, (0.2829, 0.6648, 0.7439, 0.7014)),
                _scored("minrandom", 50, 512, (0.3134, 0.6577, 0.7348, 0.6934)),
                _scored("minrandom", 50, 128, (0.3230, 0.6256, 0.7078, 0.6641)),
            ),
        ),
        PaperTable(
            3,
            "codeword length",
            (
                _scored("minimal", 16, 512, (0.2464, 0.5924, 0.6126, 0.6023)),
                _scored("minrandom", 25, 512, (0.2760, 0.6359, 0.6583, 0.6469)),
                _scored("minrandom", 50, 512, (0.3134, 0.6577, 0.7348, 0.6934)),
                _scored("minrandom", 75, 512, (0.3177, 0.6689, 0.7278, 0.6971)),
                _scored("minrandom", 100, 512, (0.2583, 0.6835, 0.7551, 0.7175)),
            ),
        ),
        PaperTable(
            4,
            "backbones",
            (
                _scored("minrandom", 50, 512, (0.3134, 0.6577, 0.7348, 0.6934)),
                _scored("minrandom", 75, 512, (0.2821, 0.6851, 0.7759, 0.7268), "Qwen2-1.5B"),
                _scored("minrandom", 100, 512, (0.2693, 0.6683, 0.7579, 0.7102), "TinyLlama-1.1B"),
            ),
        ),
    )
}


# The paper's table of a protocol beside ours: which of our heads corresponds to which of the paper's rows.


FAMILY_OF = {"OPT-1.3B": "opt", "Qwen2-1.5B": "qwen", "TinyLlama-1.1B": "llama"}  # part of the name of our setting
Pair = tuple[PaperRow, Row | None]


def compare(number: int, rows: Sequence[Row], encoder: str = "another encoder") -> list[Table]:
    """Our rows in the form of table `number` of the paper: one table per setting, for protocol 4 one for all.

    `encoder` names that of our BERTScore.
    """
    paper = TABLES[number]
    if number == 4:
        return [_scores(paper, [(row, _of_backbone(row, rows)) for row in paper.rows], "", encoder)]
    tables = []
    for setting, ours in by_setting(rows).items():
        pairs = [(row, matching(row, paper, ours)) for row in paper.rows]
        tables.append(_sizes(paper, pairs, setting) if number == 1 else _scores(paper, pairs, setting, encoder))
    return tables


def matching(wanted: PaperRow, paper: PaperTable, ours: Sequence[Row]) -> Row | None:
    """Our head for a row of the paper: same design, head and n (Minimal has one n); widths by their order."""
    if wanted.design is None:
        return next((row for row in ours if row.decision is None), None)
    alike = [row for row in ours if _is_alike(wanted, row)]
    if wanted.design != "minimal":
        alike = [row for row in alike if _bits(row) == wanted.bits]
    theirs = sorted({row.width for row in paper.rows if (row.design, row.head) == (wanted.design, wanted.head)})
    widths = sorted({row.decision["width"] for row in alike if row.decision})
    place = len(widths) // 2 if len(theirs) == 1 else theirs.index(wanted.width)
    chosen = widths[place : place + 1]  # empty if ours are fewer
    return next((row for row in alike if row.decision and row.decision["width"] in chosen), None)


def _is_alike(wanted: PaperRow, row: Row) -> bool:
    """Whether design and kind of head are the same, and the loss is the paper's."""
    decision = row.decision or {}
    found = tuple(decision.get(key) for key in ("design", "head", "loss"))
    return found == (wanted.design, wanted.head, "bitwise")


def _bits(row: Row) -> int | None:
    return row.decision["bits"] if row.decision else None


def _of_backbone(wanted: PaperRow, rows: Sequence[Row]) -> Row | None:
    """Our MinRandom MTL head on a backbone of the same family: with the same n, or the only one there is."""
    heads = [row for row in rows if FAMILY_OF[wanted.backbone] in row.setting.lower() and _is_alike(wanted, row)]
    same = [row for row in heads if _bits(row) == wanted.bits]
    return same[0] if same else heads[0] if len(heads) == 1 else None


def _sizes(paper: PaperTable, pairs: Sequence[Pair], setting: str) -> Table:
    """Protocol 1: parameters and time, each also as a share of Softmax."""
    softmax = paper.rows[0]
    reference = next((row for _, row in pairs if row and row.is_reference), None)
    theirs = ("Parameters", "of Softmax", "Time", "of Softmax")
    ours = ("Configuration", *theirs)
    lines = []
    for wanted, row in pairs:
        minutes, seconds = divmod(wanted.seconds, 60)
        lines.append(
            (
                wanted.label,
                f"{wanted.parameters:,}",
                _share(wanted.parameters / softmax.parameters),
                f"{minutes}:{seconds:02}",
                percent(wanted.seconds / softmax.seconds),
                *_our_size(row, reference),
            )
        )
    about = (
        f"The paper measured {BACKBONE} with V = 50,272 on its own machine; parameters and times differ in scale, "
        "so compare the columns “of Softmax”."
    )
    caption = _caption(paper, pairs, setting, about)
    return Table(caption, _headings(theirs, ours), tuple(lines), frozenset({0}))


def _our_size(row: Row | None, reference: Row | None) -> tuple[str, ...]:
    if row is None:
        return (ABSENT,) * 5
    time, whole = row.times.get("answer_seconds"), reference and reference.times.get("answer_seconds")
    ratio = percent(time / whole) if time and whole else ABSENT
    share = ABSENT if row.parameter_share is None else _share(row.parameter_share)
    return row.label, f"{row.parameters:,}", share, timed(row, "answer_seconds", " s"), ratio


def _scores(paper: PaperTable, pairs: Sequence[Pair], setting: str, encoder: str) -> Table:
    """Protocols 2 to 4: loss per node and BERTScore; without answers, our top-1 instead."""
    metric = "f1" if any(row and "f1" in row.values for _, row in pairs) else "top1"
    theirs = ("Loss/node", "P", "R", "F1", "of highest")
    ours = ("Configuration", "Loss/node", *(("P", "R", "F1") if metric == "f1" else ("Top-1",)), "of highest")
    if metric == "f1":
        ours = (*ours, "of Softmax")
    their_best = max(wanted.f1 or 0.0 for wanted, _ in pairs)
    our_best = max((row.values[metric].mean for _, row in pairs if row and metric in row.values), default=0.0)
    lines = []
    for wanted, row in pairs:
        theirs_on, ours_on = (
            (f"{wanted.backbone}: ", f"{row.setting}: " if row else "") if paper.number == 4 else ("", "")
        )
        scores = (wanted.loss, wanted.precision, wanted.recall, wanted.f1)
        printed = tuple(ABSENT if score is None else f"{score:.4f}" for score in scores)
        mine = (ours_on + _short(row.label), *_our_scores(row, metric, our_best)) if row else (ABSENT,) * len(ours)
        lines.append((theirs_on + _short(wanted.label), *printed, percent((wanted.f1 or 0.0) / their_best), *mine))
    caption = _caption(paper, pairs, setting, _about_scores(paper, metric, encoder))
    return Table(caption, _headings(theirs, ours), tuple(lines))


def _our_scores(row: Row, metric: str, best: float) -> tuple[str, ...]:
    """Means only, as in the paper; their intervals are in the full table."""
    share = percent(row.values[metric].mean / best) if metric in row.values and best else ABSENT
    loss = mean_node_loss(row)
    if metric == "top1":
        return loss, mean_of(row, "top1", percent), share
    scores = tuple(mean_of(row, score, "{:.4f}".format) for score in ("precision", "recall", "f1"))
    return loss, *scores, share, mean_of(row, "f1_share", percent)


def _short(label: str) -> str:
    """Without the kind of head, which is the same in the whole table."""
    return label.replace(" MTL-ECOC", "")


def _headings(theirs: Sequence[str], ours: Sequence[str]) -> tuple[Heading, ...]:
    return (
        Heading("Configuration", "The paper", is_text=True),
        *(Heading(text, "The paper") for text in theirs),
        *(Heading(text, "Ours", is_text=text == "Configuration") for text in ours),
    )


def _about_scores(paper: PaperTable, metric: str, encoder: str) -> str:
    theirs = f"The paper's BERTScore{'' if paper.number == 4 else f' on {BACKBONE}'} is by {ENCODER}"
    ours = f"ours is by {encoder}, on other backbones" if metric == "f1" else "ours have top-1 accuracy instead"
    return (
        f"{theirs}; {ours}: compare ratios (“of highest”) and order, not values. Ours are means over seeds; "
        "their intervals are in the tables below. All heads are MTL-ECOC."
    )


def _caption(paper: PaperTable, pairs: Sequence[Pair], setting: str, about: str) -> str:
    """Which rows are side by side, and what may be compared."""
    where = f", {setting_title(setting)}" if setting else ""
    matched = any(wanted.head == "mtl" and wanted.design and row for wanted, row in pairs)
    how = " Hidden widths are matched by their order, codeword lengths by n, Minimal with Minimal."
    return (
        f"Protocol {paper.number} of the paper ({paper.title}) beside ours{where}. {about}"
        f"{how if matched and paper.number != 4 else ''}"
    )


def _share(value: float) -> str:
    """A share of parameters, with digits for very small heads."""
    return percent(value) if value >= 0.001 else f"{100 * value:.3f}%"
