"""A folder of results → a Markdown report with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from codehead.evaluation.result import Result
from codehead.reports.pictures import draw_curves, draw_tradeoff
from codehead.reports.summary import Row, read_results, setting_size, setting_title, summarise
from codehead.reports.tables import markdown_table

REPORT = "report.md"


def render(
    results_folder: str | Path,
    out: str | Path | None = None,
    *,
    extra: Mapping[str, Mapping[str, str]] | None = None,
    closing: str = "",
) -> Path:
    """Write `report.md` and its pictures into `out` (default: beside the results); returns the report's path.

    `extra` adds columns to the tables (heading → label of a row → text), `closing` is Markdown for the end.
    Raises DataError if the folder holds no results, CheckpointError for a damaged one.
    """
    results = read_results(results_folder)
    folder = Path(out) if out is not None else Path(results_folder).parent / "report"
    rows = summarise(results)
    draw_tradeoff(rows, folder / "tradeoff.png")
    parts = [_heading(results), "![Accuracy against head parameters](tradeoff.png)\n"]
    for setting in sorted({row.setting for row in rows}, key=setting_size):
        parts += _section(setting, rows, results, folder, extra)
    parts += [part for part in (_reading(rows), closing, _provenance(results)) if part]
    path = folder / REPORT
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _section(
    setting: str,
    rows: Sequence[Row],
    results: Sequence[Result],
    folder: Path,
    extra: Mapping[str, Mapping[str, str]] | None,
) -> list[str]:
    picture = f"curves-{setting}.png" if setting else "curves.png"
    draw_curves([result for result in results if result.config["setting"] == setting], folder / picture)
    title = [f"## {setting_title(setting)}\n"] if setting else []
    table = markdown_table([row for row in rows if row.setting == setting], extra)
    return [*title, table, f"![Training curves]({picture})\n"]


def _heading(results: Sequence[Result]) -> str:
    config = results[0].config
    seeds = sorted({result.config["seed"] for result in results})
    named = ("seeds " if len(seeds) > 1 else "seed ") + ", ".join(map(str, seeds))
    return (
        f"# {config['protocol']}\n\n{len(results)} runs; {named}; "
        f"shares are of the cell `{config['reference']}` with the same seed and setting.\n"
    )


def _reading(rows: Sequence[Row]) -> str:
    several = any(row.seeds > 1 for row in rows)
    interval = " ± is the half width of the 95% t-interval over seeds." if several else ""
    return (
        "Top-1, top-5, perplexity and bits per byte are measured on the test split, over every token with "
        "a label. The loss per node is the mean binary cross entropy of training, averaged over the last tenth of the "
        f"logged steps.{interval}\n"
    )


def _provenance(results: Sequence[Result]) -> str:
    """One line on what the numbers were measured with; the result files hold the rest."""
    lines = []
    for source in {_machine(result): result for result in results}.values():
        lines.append(f"Measured with {_machine(source)}.\n")
    return "\n".join(lines)


def _machine(result: Result) -> str:
    provenance = result.provenance
    hardware = provenance["hardware"]
    packages = provenance["packages"]
    git = provenance["git"] or {}
    commit = f", commit {git['commit'][:10]}{' with changes' if git['dirty'] else ''}" if git else ""
    return (
        f"{hardware['gpu'] or hardware['cpu']}, torch {packages['torch']}, "
        f"transformers {packages['transformers']}, codehead {provenance['codehead']}{commit}"
    )
