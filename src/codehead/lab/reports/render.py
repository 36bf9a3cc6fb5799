"""A folder of results → a page that stands alone, and Markdown with pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codehead.lab.reports.evidence import Damaged
from codehead.lab.reports.markdown import write_markdown
from codehead.lab.reports.page import write_page
from codehead.lab.reports.report import compose


@dataclass(frozen=True)
class Rendered:
    """What was written, and the files that were left out of it."""

    page: Path  # report.html, which needs no other file
    markdown: Path  # report.md, with two pictures beside it
    damaged: tuple[Damaged, ...]


def render(results_folder: str | Path, out: str | Path | None = None) -> Rendered:
    """Write `report.html`, `report.md` and its pictures into `out` (default: `report` beside the results).

    Damaged files are named in the report and left out of every number. Raises DataError if no file is whole or if they
    are of several protocols.
    """
    folder = Path(out) if out is not None else Path(results_folder).parent / "report"
    report = compose(results_folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Rendered(write_page(report, folder), write_markdown(report, folder), report.damaged)
