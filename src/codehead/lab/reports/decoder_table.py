"""Which code is read best by which decoder: top-1 accuracy of the same outputs, ranked in different ways."""

from __future__ import annotations

from collections.abc import Sequence

from codehead.lab.reports.summary import Row, by_setting, setting_title
from codehead.lab.reports.tables import ABSENT, Heading, Table, percent

GROUPS = {"share": "Top-1, of Softmax", "top1": "Top-1"}


def decoder_tables(rows: Sequence[Row]) -> list[Table]:
    """A table per setting in which codes were read by several decoders; the best code comes first."""
    tables = []
    for setting, group in by_setting(rows).items():
        shown = [row for row in group if row.decoders]
        if shown:
            tables.append(_table(shown, ", ".join(part for part in (setting_title(setting), "Decoders") if part)))
    return tables


def _table(rows: Sequence[Row], caption: str) -> Table:
    metric = "share" if all("share" in found for row in rows for found in row.decoders.values()) else "top1"
    names = list(dict.fromkeys(name for row in rows for name in row.decoders))
    ordered = sorted(rows, key=lambda row: -max(found[metric].mean for found in row.decoders.values()))
    headings = [Heading("Head", is_text=True), *(Heading(name.replace("_", " "), GROUPS[metric]) for name in names)]
    texts = [(row.name, *(_text(row, name, metric) for name in names)) for row in ordered]
    return Table(caption, tuple(headings), tuple(texts))


def _text(row: Row, decoder: str, metric: str) -> str:
    found = row.decoders.get(decoder)
    return ABSENT if found is None else percent(found[metric])
