"""`codehead protocol`: run the cells of a protocol, report the measurements; and `codehead demo`."""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codehead.boundaries import command
from codehead.cli import options as opt
from codehead.cli.options import check_folder, number_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from codehead.lab.protocols.protocol import Protocol
    from codehead.lab.protocols.runner import Report


app = typer.Typer(help="Repeat the paper's protocols, or run one of your own.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name of `codehead protocol list`, or a YAML file.")]


@app.command(name="list")
def list_protocols() -> None:
    """Show the protocols that come with codehead."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from codehead.lab.protocols.protocol import find, names

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Protocol", no_wrap=True, style="bold")
    table.add_column("Runs", justify="right")
    table.add_column("What it does")
    for name in names():
        protocol = find(name)
        table.add_row(name, str(len(protocol.plan())), protocol.description.split(". ")[0].strip().rstrip("."))
    Console(highlight=False).print(table)


@app.command()
def run(
    protocol: Name,
    out: Annotated[
        Path,
        typer.Option(
            "--out", callback=opt.expanded, help="Folder for OUT/NAME and for OUT/store, which protocols share."
        ),
    ] = Path("runs"),
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Value of ${CODEHEAD_DATA} in the file.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only cells whose name contains this; may be repeated.")
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Number of backbones, then cells, to run in parallel.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate, show the plan with its cost, run nothing.")
    ] = False,
) -> None:
    """Run every cell that has no result yet, into OUT/NAME/results.

    A cell that fails leaves its traceback in OUT/NAME/failures; the others continue.
    Run the command again to resume, or to retry failed cells.
    """
    from codehead.lab.protocols.protocol import find

    check_folder(out)
    chosen = find(protocol)
    variables = {**os.environ, **({"CODEHEAD_DATA": str(data_dir.resolve())} if data_dir else {})}
    if dry_run:
        _show_plan(chosen, out, only or [], jobs, variables)
    else:
        _run(chosen, out, only or [], jobs, variables)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="OUT/NAME of `protocol run`, or a folder of result files.")],
    to: Annotated[
        Path | None, typer.Option("--to", callback=opt.expanded, help="Folder for the page, report.md and pictures.")
    ] = None,
) -> None:
    """Print the table and write report.html, report.md and pictures, from the result files alone.

    Files that do not match their checksum are named and omitted; the exit status is then 1.
    """
    from rich.console import Console

    from codehead.lab.result import RESULTS

    check_folder(to or folder / "report")
    results = folder / RESULTS if (folder / RESULTS).is_dir() else folder
    if not show_report(results, to or folder / "report", Console()):
        raise typer.Exit(1)


@app.command()
def embed(
    documents: Annotated[list[Path], typer.Argument(help="Markdown files with marked tables.")],
) -> None:
    """Rewrite the tables marked in documents with `<!-- results: FOLDER [SETTING] -->` from the result files."""
    from codehead.lab.reports.tables import embed

    for document in documents:
        typer.echo(f"{document}: {'rewritten' if embed(document) else 'up to date'}")


def show_report(results: Path, to: Path, console: Console) -> bool:
    """Print the tables of a folder of results and write its page; returns whether every file was intact."""
    from codehead.lab.reports.evidence import read_evidence
    from codehead.lab.reports.report import render
    from codehead.lab.reports.summary import by_setting, setting_title, summarise
    from codehead.lab.reports.tables import rich_table

    for setting, rows in by_setting(summarise(read_evidence(results))).items():
        console.print(rich_table(rows, setting_title(setting)))
    rendered = render(results, to)
    console.print(f"Page: {rendered.page}\nMarkdown: {rendered.markdown}", markup=False, soft_wrap=True)
    for damaged in rendered.damaged:
        console.print(f"Left out: {damaged.name}: {damaged.reason}", style="bold red", markup=False, soft_wrap=True)
    return not rendered.damaged


def _show_plan(protocol: Protocol, out: Path, only: list[str], jobs: int, variables: dict[str, str]) -> None:
    from rich.console import Console

    from codehead.lab.protocols.runner import machine_speed, plan_steps
    from codehead.lab.protocols.store import Store

    steps = plan_steps(protocol, out / protocol.name, Store(out / "store"), only, variables)
    speed = machine_speed(protocol.base.get("training") or {})
    console = Console(highlight=False)
    console.print(_plan_table(steps, speed))
    left = [step.seconds(speed) for step in steps if not step.is_done]
    known = sum(seconds for seconds in left if seconds is not None)
    unknown = f", and {left.count(None)} runs of unknown length" if None in left else ""
    faster = f", with --jobs {jobs} up to {jobs} times faster" if jobs > 1 else ""
    console.print(
        f"{len(left)} of {len(steps)} runs are left: about {_duration(known)} of training{unknown}{faster}; evaluation "
        "and the compression of heads take more time."
    )


def _plan_table(steps: Any, speed: float) -> Table:
    table = number_table("Steps", "Time, about", "Memory, about", first="Run")
    for step in steps:
        seconds = step.seconds(speed)
        length = "?" if seconds is None else _duration(seconds) if step.trains else "no training"
        length = "done" if step.is_done else length
        memory = "?" if step.cost is None else f"{step.cost.memory / 2**30:.1f} GiB"
        count = step.cost.steps if step.cost else None
        steps_told = "–" if not step.trains else "?" if count is None else f"{count:,}"
        table.add_row(step.key, steps_told, length, memory)
    return table


def _run(protocol: Protocol, out: Path, only: list[str], jobs: int, variables: dict[str, str]) -> None:
    from rich.console import Console

    from codehead.lab.protocols.runner import run_protocol

    folder = out / protocol.name
    outcome = run_protocol(
        protocol,
        folder,
        store=out / "store",
        only=only,
        jobs=jobs,
        variables=variables,
        report=_teller(folder, len(protocol.plan(only))),
        callbacks=_progress,
    )
    if outcome.failed:
        raise typer.Exit(1)
    report_it = command("codehead", "protocol", "report", folder)
    Console(stderr=True).print(f"Report it: {report_it}", markup=False, highlight=False, soft_wrap=True)


def _teller(folder: Path, cells: int) -> Report:
    """Prints the outcome of the runs in a folder, and how many of the `cells` are left."""
    from rich.console import Console

    from codehead.lab.result import failure_path

    console, left = Console(stderr=True), _Left(cells)

    def tell(key: str, status: str) -> None:
        is_cell = " " not in key and key != "timing"
        count = left.count(status) if is_cell else left.restart()
        where = f": {failure_path(folder, key)}" if status == "failed" else ""
        console.print(f"{key} {status}{where}{count}", markup=False, highlight=False, soft_wrap=True)

    return tell


RECENT_CELLS = 4
"""Runs that the estimate of the time left is based on: a machine may be busy for a while."""


class _Left:
    """Counts cells and estimates how long the others will take from the last ones that were run."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.seconds: deque[float] = deque(maxlen=RECENT_CELLS)
        self.restart()

    def restart(self) -> str:
        """Nothing for runs that are not cells, such as a backbone; their time does not count."""
        self.ended = time.monotonic()
        return ""

    def count(self, status: str) -> str:
        """` (3 of 18, about 12 min left)`."""
        self.done += 1
        if status != "reused":
            self.seconds.append(time.monotonic() - self.ended)
        self.restart()
        left = self.total - self.done
        if not self.seconds or not left:
            return f" ({self.done} of {self.total})"
        return f" ({self.done} of {self.total}, about {_duration(fmean(self.seconds) * left)} left)"


def _progress(key: str) -> list[Any]:
    from codehead.training.trainer import RichProgress

    return [RichProgress(key)]


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 1 else f"{seconds:.0f} s"


def demo(
    out: Annotated[
        Path, typer.Option(callback=opt.expanded, help="Folder of the report; to resume, name the same folder.")
    ] = Path("codehead-demo"),
) -> None:
    """Compare six decision layers on a small model, in about five minutes on two cores.

    Pretrains a small OPT on the documentation strings of the standard library and teaches it to answer questions
    about them: with Softmax, with the paper's heads, and with a head from `codehead convert`. It can be stopped
    and resumed.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from rich.console import Console

    from codehead.lab.demo import run_demo
    from codehead.lab.protocols.protocol import find

    check_folder(out)
    started, protocol = time.monotonic(), find("demo")
    results = run_demo(protocol, out, report=_teller(out, len(protocol.plan())), callbacks=_progress)
    console = Console()
    show_report(results, out / "report", console)
    console.print(f"{time.monotonic() - started:.0f} seconds", markup=False)
