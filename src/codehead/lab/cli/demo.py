"""`codehead demo`: the paper's heads and a converted one, from nothing but this Python installation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from codehead.cli.output import check_folder


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the report; the same folder goes on.")] = Path("codehead-demo"),
) -> None:
    """Compare six decision layers on a small model, in about five minutes on two cores.

    Pretrains a small OPT on the documentation strings of the standard library and teaches it to answer questions
    about them: with Softmax, with the paper's heads, and with a head that `codehead convert` makes. Can be stopped and
    started again.
    """
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from rich.console import Console

    from codehead.lab.cli.protocol import show_report
    from codehead.lab.cli.work import Work
    from codehead.lab.demo.run import run_demo
    from codehead.lab.protocols.catalogue import find
    from codehead.training.progress import shown

    check_folder(out)
    started, protocol = time.monotonic(), find("demo")
    with shown(Console(stderr=True)) as show:
        work = Work(protocol, show)
        results = run_demo(protocol, out, report=work.report, callbacks=work.callbacks)
    console = Console()
    show_report(results, out / "report", console)
    console.print(f"{time.monotonic() - started:.0f} seconds", markup=False)
