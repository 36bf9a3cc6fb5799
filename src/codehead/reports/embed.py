"""Keeps the tables of documents equal to the result files they come from.

A document marks the place with a folder of results, relative to the document, and optionally a setting:

    <!-- results: ../results/tinystories-8192 1.2M -->
    …the table, rewritten on every run…
    <!-- end of results -->
"""

from __future__ import annotations

import re
from pathlib import Path

from codehead.errors import DataError
from codehead.reports.evidence import read_results
from codehead.reports.summary import summarise
from codehead.reports.tables import markdown_table

BLOCK = re.compile(
    r"(?P<open><!-- results: (?P<folder>\S+)(?: (?P<setting>\S+))? -->\n).*?(?P<close><!-- end of results -->)",
    re.DOTALL,
)


def embed(document: str | Path) -> bool:
    """Rewrite every marked table of a Markdown file; returns whether the file changed.

    Raises:
        DataError: a marked folder holds no results, or none of the marked setting.
        CheckpointError: a result file is damaged.
    """
    document = Path(document)
    old = document.read_text(encoding="utf-8")
    new = rendered(old, document.parent)
    if new != old:
        document.write_text(new, encoding="utf-8")
    return new != old


def rendered(text: str, folder: Path) -> str:
    """`text` with every marked table made from its results, found relative to `folder`."""
    return BLOCK.sub(
        lambda block: f"{block['open']}{_table(folder / block['folder'], block['setting'])}{block['close']}", text
    )


def _table(results: Path, setting: str | None) -> str:
    rows = [row for row in summarise(read_results(results)) if setting in (None, row.setting)]
    if not rows:
        raise DataError(f"no result in {str(results)!r} has the setting {setting!r}; check the mark in the document")
    return "\n" + markdown_table(rows) + "\n"
