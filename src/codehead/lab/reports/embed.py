"""Keeps the tables of documents equal to the result files they come from.

A document marks the place with a folder of results, relative to the document, and optionally a setting and cells:

    <!-- results: ../results/tinystories-8192 1.2M only softmax,minimal -->
    …the table, rewritten on every run…
    <!-- end of results -->
    <!-- decoders: ../results/codes-1 -->
    …top-1 accuracy of every code under every decoder…
    <!-- end of decoders -->
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from codehead.boundaries import read_text
from codehead.errors import DataError
from codehead.lab.reports.evidence import read_results
from codehead.lab.reports.summary import Row, summarise
from codehead.lab.reports.tables import decoder_tables, markdown, markdown_table

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
        temporary = document.with_name(f".{document.name}.tmp")
        temporary.write_text(new, encoding="utf-8")
        os.replace(temporary, document)
    return new != old


def rendered(text: str, folder: Path) -> str:
    """`text` with every marked table made from its results, found relative to `folder`."""
    return BLOCK.sub(lambda block: f"{block['open']}\n{_table(folder, block)}\n{block['close']}", text)


def _table(folder: Path, block: re.Match[str]) -> str:
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
