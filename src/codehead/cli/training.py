"""What `pretrain` and `finetune` share: run, and tell how to go on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from codehead.boundaries import command
from codehead.cli.output import check_folder

if TYPE_CHECKING:
    from codehead.training.config import RunConfig


def run_training(config: RunConfig, overwrite: bool) -> None:
    """Train; on Ctrl-C say what was saved and leave with status 130."""
    from codehead.training.folder import RunFolder
    from codehead.training.run import train

    check_folder(Path(config.output_dir).expanduser())
    console = Console(stderr=True, highlight=False)
    try:
        path = train(config, overwrite=overwrite)
    except KeyboardInterrupt:
        console.print(f"\nInterrupted. {_what_was_saved(config)}", style="yellow", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if not RunFolder(config).is_main:
        return
    measure = command("codehead", "evaluate", path, "--data", "FILE")
    console.print(f"Saved to {path}. Measure it: {measure}", markup=False, soft_wrap=True)


def _what_was_saved(config: RunConfig) -> str:
    from codehead.training.folder import RunFolder

    folder = RunFolder(config)
    checkpoint = folder.last_checkpoint()
    if checkpoint is None and folder.stages.exist():
        return "What the new head has learnt was saved. The same command (without --overwrite) goes on from there."
    if checkpoint is None:
        return "No checkpoint was saved yet: the same command starts again from the beginning."
    return f"Saved: {checkpoint}. The same command (without --overwrite) goes on from there."
