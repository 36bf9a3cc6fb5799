"""`codehead demo`: the paper's five heads on a small model, from nothing but this Python installation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from codehead.protocols.demo import Budget

LINE_SECONDS = 10  # between two lines of progress where there is no terminal


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the report; the same folder goes on.")] = Path("codehead-demo"),
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same numbers.")] = 0,
) -> None:
    """Compare five decision layers on a small model, in about five minutes on two cores.

    Pretrains a small OPT on the documentation strings of the standard library and fine-tunes it to answer
    questions about them. Can be stopped and started again.
    """
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from rich.console import Console

    from codehead.protocols.demo import Budget, run_demo
    from codehead.reports.demo import render_demo, tables

    started = time.monotonic()
    console = Console()
    with _progress(Console(stderr=True), Budget()) as progress:
        run_demo(out, seed=seed, progress=progress)
    report = render_demo(out)
    for table in tables(out):
        console.print(table)
    console.print(f"Report with pictures: {report}  ({time.monotonic() - started:.0f} s)", soft_wrap=True)


@contextmanager
def _progress(console: Console, budget: Budget) -> Iterator[Callable[[str, int], None]]:
    """A bar with the time left on a terminal, a line every ten seconds elsewhere."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    if not console.is_terminal:
        yield _lines(console, budget.units)
        return
    columns = (TextColumn("{task.description:<34}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, speed_estimate_period=120) as bar:
        task = bar.add_task("starting", total=budget.units)
        yield lambda stage, units: bar.update(task, description=stage, advance=units)


def _lines(console: Console, total: int) -> Callable[[str, int], None]:
    started = last = 0.0  # the clock starts with the first work that is counted
    done, shown = 0, ""

    def progress(stage: str, units: int) -> None:
        nonlocal done, shown, started, last
        done += units
        now = time.monotonic()
        started = started or (now if units else 0.0)
        if stage == shown and now - last < LINE_SECONDS:
            return
        seconds = (now - started) / done * (total - done) if done else 0.0
        left = f", about {seconds:.0f} s left" if seconds else ""
        console.print(f"{100 * done / total:3.0f}%  {stage}{left}", markup=False, highlight=False)
        shown, last = stage, now

    return progress
