"""`codehead protocol`: run the cells of a protocol file, report what was measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codehead.cli.output import check_folder

if TYPE_CHECKING:
    from codehead.protocols.protocol import Cell, Protocol

app = typer.Typer(help="Run a protocol file and report its results.", no_args_is_help=True)

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="What ${CODEHEAD_DATA} stands for in the file.", show_default=False),
]


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The protocol's YAML file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of runs and results; the same folder goes on.")],
    data_dir: DataDir = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only cells whose name contains this; may be repeated.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Cells that run at the same time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate, list the cells, run nothing.")] = False,
) -> None:
    """Run every cell that has no result yet.

    A cell that fails keeps its traceback in OUT/failures and stops no other.
    Run the command again to retry it.
    """
    from codehead.protocols.protocol import Protocol

    check_folder(out)
    protocol = Protocol.from_yaml(file)
    variables = {**os.environ, **({"CODEHEAD_DATA": str(data_dir)} if data_dir else {})}
    if dry_run:
        _list(protocol, only or [], variables)
    else:
        _run(protocol, out, only or [], jobs, variables)


@app.command()
def report(
    out: Annotated[Path, typer.Argument(help="Folder that `protocol run --out` wrote.")],
    to: Annotated[Path | None, typer.Option("--to", help="Folder for report.md and its pictures.")] = None,
) -> None:
    """Print the table and write report.md with pictures, from the result files alone."""
    from rich.console import Console

    from codehead.protocols.runner import RESULTS
    from codehead.reports.render import render
    from codehead.reports.summary import read_results, setting_title, summarise
    from codehead.reports.tables import rich_table

    folder = out / RESULTS if (out / RESULTS).is_dir() else out
    rows = summarise(read_results(folder))
    console = Console()
    for setting in dict.fromkeys(row.setting for row in rows):
        console.print(rich_table([row for row in rows if row.setting == setting], setting_title(setting)))
    console.print(f"Report: {render(folder, to or out / 'report')}", soft_wrap=True)


@app.command()
def embed(
    documents: Annotated[list[Path], typer.Argument(help="Markdown files with marked tables.")],
) -> None:
    """Rewrite the tables that documents mark with `<!-- results: FOLDER [BUDGET] -->` from the result files."""
    from codehead.reports.embed import embed

    for document in documents:
        typer.echo(f"{document}: {'rewritten' if embed(document) else 'up to date'}")


def _list(protocol: Protocol, only: list[str], variables: dict[str, str]) -> None:
    from codehead.protocols.protocol import run_config

    for cell in protocol.plan(only):
        run_config(cell, variables, Path(cell.key))
        typer.echo(cell.key)


def _run(protocol: Protocol, out: Path, only: list[str], jobs: int, variables: dict[str, str]) -> None:
    from rich.console import Console

    from codehead.protocols.runner import failure_path, run_protocol

    console = Console(stderr=True)
    total = len(protocol.plan(only))
    done = 0

    def tell(cell: Cell, status: str) -> None:
        nonlocal done
        done += 1
        where = f": {failure_path(out, cell)}" if status == "failed" else ""
        console.print(f"[{done}/{total}] {cell.key} {status}{where}", markup=False, highlight=False, soft_wrap=True)

    outcome = run_protocol(protocol, out, only=only, jobs=jobs, variables=variables, report=tell, callbacks=_progress)
    if outcome.failed:
        raise typer.Exit(1)


def _progress(cell: Cell) -> list[Any]:
    from codehead.training.progress import RichProgress

    return [RichProgress(cell.key)]
