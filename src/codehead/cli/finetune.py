"""`codehead finetune`: adapt an existing model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from codehead.cli import options as opt
from codehead.cli.decision import PANEL, decision_options


@decision_options
def finetune(
    context: typer.Context,
    config: opt.ConfigFile = None,
    model: Annotated[str | None, typer.Option("--model", help="Hub id, folder or GGUF file.")] = None,
    tokenizer: opt.Tokenizer = None,
    out: opt.Out = None,
    seed: opt.Seed = None,
    adapt: Annotated[
        str | None, typer.Option("--adapt", help="lora (attention) + head, full, or head.", show_default="lora")
    ] = None,
    lora_r: Annotated[int | None, typer.Option("--lora-r", help="Rank of the adapters.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Of the weights.", show_default="float32")] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help=f"{opt.BUDGET} Chooses them all.", rich_help_panel=PANEL)
    ] = None,
    train: opt.Train = None,
    validation: opt.Validation = None,
    validation_fraction: opt.ValidationFraction = None,
    text_field: opt.TextField = None,
    block_size: opt.BlockSize = None,
    max_documents: opt.MaxDocuments = None,
    learning_rate: opt.LearningRate = None,
    max_steps: opt.MaxSteps = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    gradient_accumulation_steps: opt.Accumulation = None,
    bf16: opt.BFloat16 = None,
    save_steps: opt.SaveSteps = None,
    logging_steps: opt.LoggingSteps = None,
    assignments: opt.Assignments = None,
    overwrite: opt.Overwrite = False,
    **decision: Any,
) -> None:
    """Adapt an existing model: its own decision layer, or a new one given by --code or --budget.

    With --budget the new head learns from the old one first; then backbone and head learn from the text, and the head
    is rounded. A run that was stopped goes on from its last complete checkpoint when
    the same command is given again.
    """
    from rich.console import Console

    from codehead.cli.training import run_training
    from codehead.errors import ConfigurationError
    from codehead.training.blocks import merged, read_yaml
    from codehead.training.budget import within
    from codehead.training.config import RunConfig

    values = merged({} if config is None else read_yaml(config), opt.overrides(context.params))
    if isinstance(values.get("model"), dict):
        raise ConfigurationError(
            f"model is an architecture ({values['model']!r}); give finetune a hub id or a local folder, "
            "or use codehead pretrain"
        )
    if isinstance(values.get("model"), str) and "block_size" not in (values.get("data") or {}):
        values = merged(values, {"data.block_size": opt.block_size_for(values["model"])})
    if budget is None:
        run_training(RunConfig.from_dict(values), overwrite)
        return
    run, told = within(values, budget)
    Console(stderr=True, highlight=False).print(told, markup=False, soft_wrap=True)
    run_training(run, overwrite)
