"""Rows of a summary → a table for the terminal, for documents and for the report."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from codehead.boundaries import read_text
from codehead.errors import DataError
from codehead.lab.reports.evidence import read_results
from codehead.lab.reports.summary import OVER_TOKENS, Estimate, Row, by_setting, setting_title, summarise
from codehead.lab.result import replace_file

if TYPE_CHECKING:
    from rich.table import Table as RichTable


ABSENT = "–"
LABEL_WIDTH = 18  # "MinRandom MTL-ECOC", wrapped before its numbers in a narrow terminal
TERMINAL, DOCUMENT, REPORT = 0, 1, 2  # in order of available width


@dataclass(frozen=True)
class Heading:
    """The heading of a column, and of its group."""

    text: str
    group: str = ""
    is_text: bool = False  # aligned to the left


@dataclass(frozen=True)
class Table:
    """Finished texts; the first column names the rows."""

    caption: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: frozenset[int] = frozenset()  # rows to highlight: the reference
    names: tuple[tuple[str, str], ...] = ()  # the meaning of short names

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Group headings with the number of columns under each; empty if there are none."""
        spans = [(name, len(list(members))) for name, members in groupby(self.headings, lambda heading: heading.group)]
        return spans if any(name for name, _ in spans) else []

    @property
    def starts(self) -> list[bool]:
        """Whether a column begins a new group."""
        names = [heading.group for heading in self.headings]
        return [number > 0 and name != names[number - 1] for number, name in enumerate(names)]


@dataclass(frozen=True)
class Column:
    """A heading and the text of a row under it, for places with at least `room`."""

    heading: str
    text: Callable[[Row], str]
    group: str = ""
    room: int = TERMINAL
    is_text: bool = False
    brief: Callable[[Row], str] | None = None  # the text for a terminal, if it is another


def table_of(rows: Sequence[Row], caption: str = "", room: int = REPORT) -> Table:
    """The rows of one setting as a table: the columns that fit and that at least one row fills."""
    fitting = [column for column in _usual(rows) if column.room <= room]
    shown = [column for column in fitting if any(column.text(row) != ABSENT for row in rows)]
    texts = [column.brief if column.brief and room == TERMINAL else column.text for column in shown]
    return Table(
        caption,
        tuple(Heading(column.heading, column.group, column.is_text) for column in shown),
        tuple(tuple(text(row) for text in texts) for row in rows),
        frozenset(number for number, row in enumerate(rows) if row.is_reference),
        tuple((row.name, row.label) for row in rows if row.name != row.label),
    )


def markdown(table: Table, *, with_groups: bool = False) -> str:
    """A Markdown table, with numbers aligned to the right; groups become the beginning of the headings."""
    titles = [
        f"{heading.group}: {heading.text}" if with_groups and heading.group else heading.text
        for heading in table.headings
    ]
    lines = [
        "| " + " | ".join(titles) + " |",
        "| " + " | ".join("---" if heading.is_text else "---:" for heading in table.headings) + " |",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    if table.names:
        lines += ["", "Names: " + "; ".join(f"**{name}**: {label}" for name, label in table.names) + "."]
    return "\n".join(lines) + "\n"


def markdown_table(rows: Sequence[Row]) -> str:
    """The table for a document: the columns for comparing heads."""
    return markdown(table_of(rows, room=DOCUMENT))


def rich_table(rows: Sequence[Row], title: str = "") -> RichTable:
    """The table for a terminal, without the columns that fit only into a document."""
    from rich import box
    from rich.table import Table as RichTable

    told = table_of(rows, title, TERMINAL)
    table = RichTable(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title_justify, table.title_style = "left", "bold"
    for heading in told.headings:
        if heading.is_text:
            table.add_column(heading.text, min_width=LABEL_WIDTH)
        else:
            table.add_column(heading.text, justify="right", no_wrap=True)
    for number, texts in enumerate(told.rows):
        table.add_row(*texts, style="bold" if number in told.strong else None)
    table.caption = "\n".join(f"{name}: {label}" for name, label in told.names) or None
    table.caption_justify = "left"
    return table


def percent(value: Estimate | float | None) -> str:
    """`50.0%`, or `50.0 ± 0.4%` with an interval."""
    if value is None:
        return ABSENT
    if not isinstance(value, Estimate):
        return f"{100 * value:.1f}%" if value >= 0.1 else f"{100 * value:.2f}%"
    interval = "" if value.half_width is None else f" ± {100 * value.half_width:.1f}"
    return f"{100 * value.mean:.1f}{interval}%"


def number(value: Estimate | None, digits: int) -> str:
    """`12.3`, or `12.3 ± 0.4`."""
    if value is None:
        return ABSENT
    interval = "" if value.half_width is None else f" ± {value.half_width:,.{digits}f}"
    return f"{value.mean:,.{digits}f}{interval}"


def mean_of(row: Row, name: str, told: Callable[[float], str]) -> str:
    """A value without its interval."""
    return told(row.values[name].mean) if name in row.values else ABSENT


def node_loss(row: Row) -> str:
    """Final mean training loss per node; empty for a loss over V tokens."""
    is_bitwise = row.family not in OVER_TOKENS
    return number(row.values.get("train_loss"), 4) if is_bitwise else ABSENT


def mean_node_loss(row: Row) -> str:
    """The same without its interval over seeds."""
    return node_loss(row).split(" ±")[0]


def timed(row: Row, name: str, unit: str = "") -> str:
    """The median of a measurement with three digits: `0.123 s`, `1.23 s`, `12.3 s`, `1,234 s`."""
    time = row.times.get(name)
    if time is None:
        return ABSENT
    digits = 0 if time >= 100 else 1 if time >= 10 else 2 if time >= 1 else 3
    return f"{time:,.{digits}f}{unit}"


def _usual(rows: Sequence[Row]) -> list[Column]:
    """All possible columns for these rows. A terminal has room for the loss or for F1."""
    differ = len({row.seeds for row in rows}) > 1
    scored = any("f1" in row.values for row in rows)
    weighed = any(row.byte_share is not None for row in rows)
    counted_room, ratio_room = (DOCUMENT, DOCUMENT) if weighed else (TERMINAL, REPORT)
    return [
        Column("Head", lambda row: row.name, is_text=True, brief=lambda row: row.name.replace(", ", ",")),
        Column("Seeds", lambda row: str(row.seeds) if differ else ABSENT, room=DOCUMENT),
        Column("Params", _parameters, "Size of the head", counted_room),
        Column(
            "of Softmax", lambda row: percent(row.parameter_share), "Size of the head", REPORT if weighed else TERMINAL
        ),
        Column("Resident", _bytes, "Size of the head", REPORT),
        Column("Bytes", lambda row: percent(row.byte_share), "Size of the head"),
        Column("Loss/node", node_loss, "Training", DOCUMENT if scored else TERMINAL, brief=mean_node_loss),
        Column("Top-1", _percent("top1"), "Next token, test split", brief=lambda row: mean_of(row, "top1", percent)),
        Column("of Softmax", _percent("share"), "Next token, test split"),
        Column("Top-5", _percent("top5"), "Next token, test split", DOCUMENT),
        Column("of Softmax", _percent("top5_share"), "Next token, test split", REPORT),
        Column("Perplexity", _number("perplexity", 1), "Next token, test split", DOCUMENT),
        Column("× Softmax", _number("perplexity_ratio", 3), "Next token, test split", ratio_room),
        Column("Bits/byte", _number("bits_per_byte", 3), "Next token, test split", REPORT if weighed else DOCUMENT),
        Column("× Softmax", _number("bits_per_byte_ratio", 3), "Next token, test split", REPORT),
        Column("P", _number("precision", 4), "Answers, BERTScore", REPORT if weighed else DOCUMENT),
        Column("R", _number("recall", 4), "Answers, BERTScore", REPORT if weighed else DOCUMENT),
        Column("F1", _number("f1", 4), "Answers, BERTScore", brief=lambda row: mean_of(row, "f1", "{:.3f}".format)),
        Column("of Softmax", _percent("f1_share"), "Answers, BERTScore", DOCUMENT),
        Column("Answers", lambda row: timed(row, "answer_seconds", " s"), "Time", REPORT),
        Column("Tokens/s", lambda row: timed(row, "tokens_per_second"), "Time", REPORT),
    ]


def _parameters(row: Row) -> str:
    """Nothing for a quantised or trimmed Softmax head: its parameter count no longer applies."""
    return ABSENT if row.family == "peer" and row.decision is None else f"{row.parameters:,}"


def _percent(name: str) -> Callable[[Row], str]:
    return lambda row: percent(row.values.get(name))


def _number(name: str, digits: int) -> Callable[[Row], str]:
    return lambda row: number(row.values.get(name), digits)


def _bytes(row: Row) -> str:
    return ABSENT if row.bytes_resident is None else f"{row.bytes_resident:,}"


# The best decoder for each code: top-1 accuracy of the same outputs under different decoders.


GROUPS = {"share": "Top-1, of Softmax", "top1": "Top-1"}


def decoder_tables(rows: Sequence[Row]) -> list[Table]:
    """A table per setting in which codes were tried with several decoders; the best code comes first."""
    decoded = by_setting(row for row in rows if row.decoders)
    captions = {setting: f"{setting_title(setting)}, Decoders" if setting else "Decoders" for setting in decoded}
    return [_decoder_table(group, captions[setting]) for setting, group in decoded.items()]


def _decoder_table(rows: Sequence[Row], caption: str) -> Table:
    metric = "share" if all("share" in found for row in rows for found in row.decoders.values()) else "top1"
    names = list(dict.fromkeys(name for row in rows for name in row.decoders))
    ordered = sorted(rows, key=lambda row: -max(found[metric].mean for found in row.decoders.values()))
    headings = [Heading("Head", is_text=True), *(Heading(name.replace("_", " "), GROUPS[metric]) for name in names)]
    texts = [(row.name, *(percent(row.decoders.get(name, {}).get(metric)) for name in names)) for row in ordered]
    return Table(caption, tuple(headings), tuple(texts))


# Keeps tables in documents in step with their result files.
#
# A document marks the place with a folder of results, relative to the document, and optionally a setting and cells:
#
#     <!-- results: ../results/tinystories-8192 1.2M only softmax,minimal -->
#     …the table, rewritten on every run…
#     <!-- end of results -->
#     <!-- decoders: ../results/codes-1 -->
#     …top-1 accuracy of every code under every decoder…
#     <!-- end of decoders -->


BLOCK = re.compile(
    r"(?P<open><!-- (?P<kind>results|decoders): (?P<folder>\S+)"
    r"(?: (?!only )(?P<setting>\S+))?(?: only (?P<cells>\S+))? -->\n)"
    r".*?(?P<close><!-- end of (?P=kind) -->)",
    re.DOTALL,
)


def embed(document: str | Path) -> bool:
    """Rewrite every marked table of a Markdown file; returns whether the file changed.

    Raises:
        DataError: a marked folder holds no results, or none of the marked setting or cell.
        CheckpointError: a result file is damaged.
    """
    document = Path(document)
    old = read_text(document, "document")
    new = rendered(old, document.parent)
    if new != old:
        replace_file(document, new)
    return new != old


def rendered(text: str, folder: Path) -> str:
    """`text` with every marked table rebuilt from its results, found relative to `folder`."""
    return BLOCK.sub(lambda block: f"{block['open']}\n{_marked_table(folder, block)}\n{block['close']}", text)


def _marked_table(folder: Path, block: re.Match[str]) -> str:
    results, setting = folder / block["folder"], block["setting"]
    rows = [row for row in summarise(read_results(results)) if setting in (None, row.setting)]
    if not rows:
        raise DataError(f"no result in {str(results)!r} has the setting {setting!r}; check the mark in the document")
    rows = rows if block["cells"] is None else _only(rows, block["cells"].split(","), results)
    if block["kind"] == "results":
        return markdown_table(rows)
    tables = decoder_tables(rows)
    if not tables:
        raise DataError(f"no result in {str(results)!r} was read by several decoders; check the mark in the document")
    return "\n".join(markdown(table) for table in tables)


def _only(rows: Sequence[Row], cells: Sequence[str], results: Path) -> list[Row]:
    missing = set(cells) - {row.cell for row in rows}
    if missing:
        raise DataError(
            f"no result in {str(results)!r} is of the cell {min(missing)!r}; check the mark in the document"
        )
    return [row for row in rows if row.cell in cells]
