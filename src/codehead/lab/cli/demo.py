"""`codehead demo`: the paper's five heads on a small model, from nothing but this Python installation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from codehead.cli.output import check_folder


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

    from codehead.lab.demo.experiment import Budget, run_demo
    from codehead.lab.demo.report import render_demo, tables
    from codehead.training.progress import shown

    check_folder(out)
    started = time.monotonic()
    console = Console()
    done = 0
    with shown(Console(stderr=True)) as show:

        def progress(stage: str, units: int) -> None:
            nonlocal done
            done += units
            show(stage, done, Budget().units)

        run_demo(out, seed=seed, progress=progress)
    report = render_demo(out)
    for table in tables(out):
        console.print(table)
    console.print(f"Report with pictures: {report}  ({time.monotonic() - started:.0f} s)", soft_wrap=True)
