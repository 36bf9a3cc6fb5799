"""The `codehead` command: its commands, and how their errors are told."""

from __future__ import annotations

import errno
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from codehead.cli import protocol
from codehead.cli.attach import attach
from codehead.cli.calibrate import calibrate
from codehead.cli.code import code
from codehead.cli.convert import convert
from codehead.cli.demo import demo
from codehead.cli.doctor import doctor
from codehead.cli.evaluate import evaluate
from codehead.cli.finetune import finetune
from codehead.cli.generate import generate
from codehead.cli.params import params
from codehead.cli.pretrain import pretrain
from codehead.cli.recommend import recommend
from codehead.cli.screen import screen
from codehead.errors import CodeheadError

FULL_DISK = ("no space left on device", "storagefull", "enforce fail at inline_container")

RESUMED = ("demo", "protocol", "convert", "calibrate", "screen")
"""Commands that go on where they were stopped; pretrain and finetune say so themselves, and what was saved."""


class Commands(TyperGroup):
    """The commands; one that is stopped by Ctrl-C says so, with exit status 130."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command that was given."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            again = "again, without --overwrite," if "--overwrite" in sys.argv else "again"
            remedy = f"; give the same command {again} to go on" if ctx.invoked_subcommand in RESUMED else ""
            Console(stderr=True).print(f"\nInterrupted{remedy}.", style="yellow")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="codehead",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    demo, params, recommend, screen, convert, code, attach, pretrain, finetune, calibrate, evaluate, generate, doctor,
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
    """Run the command line. What a user can cause is told in one message, with exit status 2."""
    try:
        app()
    except CodeheadError as error:
        _fail(str(error))
    except Exception as error:
        if not is_full_disk(error):
            raise
        _fail(
            f"the disk is full ({error}). Free some space and run the same command again: a run goes on from its "
            "last complete checkpoint"
        )


def is_full_disk(error: BaseException) -> bool:
    """Whether a write failed for want of space; safetensors says so in words, torch by its writer's position."""
    text = str(error).lower()
    return getattr(error, "errno", None) == errno.ENOSPC or any(phrase in text for phrase in FULL_DISK)


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(f"Error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)
