"""The `codehead` command, or `python -m codehead`: its commands, and how their errors are reported."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from codehead.boundaries import missing_extra, system_failure
from codehead.cli.advice import code, doctor, params, recommend
from codehead.cli.checkpoints import attach, calibrate, convert, fold, generate, screen
from codehead.cli.training import finetune, pretrain
from codehead.errors import CodeheadError, ConfigurationError
from codehead.lab.cli import protocol
from codehead.lab.cli.evaluate import evaluate
from codehead.lab.cli.protocol import demo
from codehead.processes import is_main

RESUMED = ("demo", "protocol", "convert", "calibrate", "fold", "screen")
"""Commands that resume where they were stopped; pretrain and finetune report this, and what was saved, themselves."""


MISTAKE, UNEXPECTED, INTERRUPTED = 2, 70, 130
"""Exit statuses: an error that a user can cause, a bug in the program (EX_SOFTWARE), Ctrl-C."""


class Commands(TyperGroup):
    """The commands; one that is stopped by Ctrl-C says so, with exit status 130."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command that was given."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            again = "again, without --overwrite," if "--overwrite" in sys.argv else "again"
            remedy = f"; run the same command {again} to resume" if ctx.invoked_subcommand in RESUMED else ""
            Console(stderr=True).print(f"\nInterrupted{remedy}.", style="yellow")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="codehead",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    demo, params, recommend, screen, convert, code, attach, pretrain, finetune, calibrate, fold, evaluate, generate,
    doctor,
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)
app.add_typer(protocol.app, name="protocol")


@app.callback(invoke_without_command=True)
def show_version(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    """Error-correcting output codes as the decision layer of language models."""
    if version:
        from importlib import metadata

        typer.echo(f"codehead {metadata.version('codehead')}")
        raise typer.Exit


def main() -> None:
    """Run the command line.

    An error that the user or the system can cause prints one message and exits with status 2. Anything else is a bug:
    one line says where its traceback was written, and the exit status is 70. With several processes, only the first
    prints results.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without these characters (ASCII) shows `?`
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (it stays open as long as the process lives)
    try:
        _check_no_empty(sys.argv[1:])
        app()
    except CodeheadError as error:
        _fail(str(error), MISTAKE)
    except Exception as error:
        refused = missing_extra(error) if isinstance(error, ImportError) else system_failure(error)
        if refused is not None:
            _fail(refused, MISTAKE)
        line = " ".join(str(error).split())[:300]
        _fail(f"unexpected {type(error).__name__}: {line}. {_report()}", UNEXPECTED)


def _check_no_empty(args: Sequence[str]) -> None:
    """Refuse empty values: an empty path is the current folder, and nothing else takes one."""
    for before, word in zip(("", *args), args, strict=False):
        name, equals, value = word.partition("=")
        if equals and name.startswith("--") and not value.strip():
            raise ConfigurationError(f"{name} is empty; give a value, or omit it")
        if not word.strip():
            name = before if before.startswith("-") else "an argument"
            raise ConfigurationError(f"{name} is empty; give a value, or omit it")


def _report() -> str:
    """Write the traceback of the error being handled to a file, and say where."""
    try:
        how: Any = {"encoding": "utf-8", "errors": "backslashreplace", "delete": False}
        with tempfile.NamedTemporaryFile("w", prefix="codehead-", suffix=".txt", **how) as file:
            file.write(f"{sys.argv!r}\n{traceback.format_exc()}")
    except OSError as error:
        return f"This is a bug in codehead; its traceback could not be written ({error})"
    return f"This is a bug in codehead; please report it with the traceback in {file.name}"


def _fail(message: str, status: int) -> NoReturn:
    Console(stderr=True).print(f"Error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
