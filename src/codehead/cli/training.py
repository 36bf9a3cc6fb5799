"""`codehead pretrain` and `codehead finetune`: train, and say how to resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from codehead.boundaries import command
from codehead.cli import options as opt
from codehead.cli.options import DECISION, check_folder, run_options
from codehead.config.blocks import merged, read_yaml
from codehead.errors import ConfigurationError
from codehead.processes import is_main
from codehead.training.config import RunConfig


@run_options
def pretrain(
    context: typer.Context,
    config: opt.ConfigFile = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Architecture, as in '{model_type: gpt2, n_embd: 192}'.")
    ] = None,
    assignments: opt.Assignments = None,
    overwrite: opt.Overwrite = False,
    **options: Any,
) -> None:
    """Train a new model from scratch, with Softmax or a code as its decision layer.

    To resume a stopped run from its last complete checkpoint, repeat the command.
    """
    run = RunConfig.from_yaml(config, opt.overrides(context.params))
    if not run.is_pretraining:
        raise ConfigurationError(
            f"model is {run.model!r}, an existing model; give pretrain an architecture such as "
            "'{model_type: gpt2, n_embd: 192}', or use codehead finetune"
        )
    run_training(run, overwrite)


@run_options
def finetune(
    context: typer.Context,
    config: opt.ConfigFile = None,
    model: Annotated[str | None, typer.Option("--model", help="Hub id, folder or GGUF file.")] = None,
    adapt: Annotated[
        str | None,
        typer.Option("--adapt", help="What to train: lora (attention) and head, full, or head.", show_default="lora"),
    ] = None,
    lora_r: Annotated[int | None, typer.Option("--lora-r", help="Rank of the adapters.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Dtype of the weights.", show_default="float32")] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", help=f"{opt.BUDGET} Sets all options of the decision layer.", rich_help_panel=DECISION
        ),
    ] = None,
    assignments: opt.Assignments = None,
    overwrite: opt.Overwrite = False,
    **options: Any,
) -> None:
    """Adapt an existing model: its own decision layer, or a new one given by --code or --budget.

    With --budget, the new head is first distilled from the old one; then backbone and head are trained on the text, and
    the head is rounded. To resume a stopped run from its last complete checkpoint, repeat the command.
    """
    from codehead.training.new_head import within

    values = merged({} if config is None else read_yaml(config), opt.overrides(context.params))
    if isinstance(values.get("model"), dict):
        raise ConfigurationError(
            f"model is an architecture ({values['model']!r}); give finetune a hub id or a local folder, "
            "or use codehead pretrain"
        )
    if isinstance(values.get("model"), str) and "block_size" not in (values.get("data") or {}):
        values = merged(values, {"data.block_size": opt.block_size_for(values["model"])})
    if budget is None:
        run = RunConfig.from_dict(values)
    else:
        run, told = within(values, budget)
        typer.echo(told, err=True)
    run_training(run, overwrite)


def run_training(config: RunConfig, overwrite: bool) -> None:
    """Train; on Ctrl-C, say what was saved and exit with status 130."""
    from codehead.training.run import train

    check_folder(Path(os.path.expanduser(config.output_dir)))
    try:
        path = train(config, overwrite=overwrite)
    except KeyboardInterrupt:
        typer.secho(f"\nInterrupted. {_what_was_saved(config)}", fg="yellow", err=True)
        raise typer.Exit(130) from None
    if not is_main():
        return
    measure = command("codehead", "evaluate", path, "--data", "FILE")
    typer.echo(f"Saved to {path}. Measure it: {measure}", err=True)


def _what_was_saved(config: RunConfig) -> str:
    from codehead.training.folder import RunFolder

    folder = RunFolder(config)
    checkpoint = folder.last_checkpoint()
    if checkpoint is None and folder.stages.exist():
        return "The new head's progress was saved. The same command (without --overwrite) resumes from there."
    if checkpoint is None:
        return "No checkpoint was saved yet: the same command starts from the beginning."
    return f"Saved: {checkpoint}. The same command (without --overwrite) resumes from there."
