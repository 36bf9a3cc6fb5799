"""Rows of a summary → a table for the terminal and the same table in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codehead.reports.summary import Estimate, Row

if TYPE_CHECKING:
    from rich.table import Table

ABSENT = "–"
LABEL_WIDTH = 18  # "MinRandom MTL-ECOC", which is broken before its numbers in a narrow terminal


@dataclass(frozen=True)
class Column:
    """A heading and the text of a row under it; `is_wide` ones are for reports, not for a terminal."""

    heading: str
    text: Callable[[Row], str]
    is_text: bool = False
    is_wide: bool = False
    brief: Callable[[Row], str] | None = None  # the text for a terminal, if it is another


def columns(rows: Sequence[Row], extra: Mapping[str, Mapping[str, str]] | None = None) -> list[Column]:
    """The columns that at least one row fills. `extra` adds columns: heading → label of a row → text."""
    differ = len({row.seeds for row in rows}) > 1
    usual = [
        Column("Head", lambda row: row.label, is_text=True, brief=lambda row: row.label.replace(", ", ",")),
        Column("Seeds", lambda row: str(row.seeds) if differ else ABSENT, is_wide=True),
        Column("Params", lambda row: f"{row.parameters:,}"),
        Column("of Softmax", lambda row: percent(row.parameter_share)),
        Column("Loss/node", _node_loss, brief=lambda row: _node_loss(row).split(" ±")[0]),
        Column("Top-1", lambda row: percent(row.values.get("top1")), brief=lambda row: mean(row, "top1")),
        Column("of Softmax", lambda row: percent(row.values.get("share"))),
        Column("Top-5", lambda row: percent(row.values.get("top5")), is_wide=True),
        Column("Perplexity", lambda row: number(row.values.get("perplexity"), 1), is_wide=True),
        Column("Bits/byte", lambda row: number(row.values.get("bits_per_byte"), 3), is_wide=True),
    ]
    for heading, texts in (extra or {}).items():
        usual.append(Column(heading, lambda row, texts=texts: texts.get(row.label, ABSENT)))  # type: ignore[misc]
    return [column for column in usual if any(column.text(row) != ABSENT for row in rows)]


def markdown_table(rows: Sequence[Row], extra: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """A Markdown table, with numbers aligned to the right."""
    shown = columns(rows, extra)
    lines = [
        "| " + " | ".join(column.heading for column in shown) + " |",
        "| " + " | ".join("---" if column.is_text else "---:" for column in shown) + " |",
    ]
    lines += ["| " + " | ".join(column.text(row) for column in shown) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def rich_table(rows: Sequence[Row], title: str = "", extra: Mapping[str, Mapping[str, str]] | None = None) -> Table:
    """The table for a terminal, without the columns that only the report has room for."""
    from rich import box
    from rich.table import Table

    shown = [column for column in columns(rows, extra) if not column.is_wide]
    table = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title_justify, table.title_style = "left", "bold"
    for column in shown:
        table.add_column(
            column.heading,
            justify="left" if column.is_text else "right",
            no_wrap=not column.is_text,
            min_width=LABEL_WIDTH if column.is_text else None,
        )
    for row in rows:
        texts = ((column.brief or column.text)(row) for column in shown)
        table.add_row(*texts, style="bold" if row.is_reference else None)
    return table


def percent(value: Estimate | float | None) -> str:
    """`50.0%`, or `50.0 ± 0.4%` with an interval."""
    if value is None:
        return ABSENT
    if not isinstance(value, Estimate):
        return f"{100 * value:.1f}%" if value >= 0.1 else f"{100 * value:.2f}%"
    interval = "" if value.half_width is None else f" ± {100 * value.half_width:.1f}"
    return f"{100 * value.mean:.1f}{interval}%"


def mean(row: Row, name: str) -> str:
    """The mean of a rate without its interval."""
    value = row.values.get(name)
    return ABSENT if value is None else f"{100 * value.mean:.1f}%"


def number(value: Estimate | None, digits: int) -> str:
    """`12.3`, or `12.3 ± 0.4`."""
    if value is None:
        return ABSENT
    interval = "" if value.half_width is None else f" ± {value.half_width:,.{digits}f}"
    return f"{value.mean:,.{digits}f}{interval}"


def _node_loss(row: Row) -> str:
    """Final mean training loss per node; a loss over V tokens is none."""
    is_bitwise = row.family not in ("softmax", "codeword")
    return number(row.values.get("train_loss"), 4) if is_bitwise else ABSENT
