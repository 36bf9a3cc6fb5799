"""`codehead pretrain`: train a new model from scratch."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from codehead.cli import options as opt
from codehead.cli.decision import decision_options


@decision_options
def pretrain(
    context: typer.Context,
    config: opt.ConfigFile = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Architecture, as in '{model_type: gpt2, n_embd: 192}'.")
    ] = None,
    tokenizer: opt.Tokenizer = None,
    out: opt.Out = None,
    seed: opt.Seed = None,
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
    """Train a new model from scratch, with Softmax or a code as its decision layer.

    A run that was stopped goes on from its last complete checkpoint when the same command is given again.
    """
    from codehead.cli.training import run_training
    from codehead.errors import ConfigurationError
    from codehead.training.config import RunConfig

    run = RunConfig.from_yaml(config, opt.overrides(context.params))
    if not run.is_pretraining:
        raise ConfigurationError(
            f"model is {run.model!r}, an existing model; give pretrain an architecture such as "
            "'{model_type: gpt2, n_embd: 192}', or use codehead finetune"
        )
    run_training(run, overwrite)
