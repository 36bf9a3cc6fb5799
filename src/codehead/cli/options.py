"""Options that several commands share, and the configuration keys that the training options set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from codehead.cli import decision

DECISION, DATA, TRAINING = "Decision layer", "Data", "Training"

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file of the run; every key below overrides it.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key, as in --set training.warmup_steps=100."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start again, removing the run in the output folder.")]
Out = Annotated[str | None, typer.Option("--out", help="Folder of the run (output_dir).")]
LARGEST_SEED = 2**32 - 1  # numpy's
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Seed of the run.")]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="Hub id, folder, or '{train: bpe, vocab_size: 8192}'.")
]

PACKED = "Keep codewords packed in memory: a 32nd of the bytes; on a CPU long ones are then faster, short ones slower."
Packed = Annotated[bool | None, typer.Option("--packed/--unpacked", help=PACKED, show_default="as the checkpoint says")]

Bits = Annotated[int | None, typer.Option("--bits", help="Codeword length n.", rich_help_panel=DECISION)]
BUDGET = "Bytes of the new head, as a share of the old one's in bf16, such as 5%."
Budget = Annotated[str | None, typer.Option("--budget", help=BUDGET)]
Speed = Annotated[
    str | None,
    typer.Option("--speed", help="How many times fewer multiply-adds per token than Softmax's, such as 4x."),
]

Train = Annotated[str | None, typer.Option("--train", help="Hub id or local file.", rich_help_panel=DATA)]
Validation = Annotated[str | None, typer.Option("--validation", help="Hub id or file.", rich_help_panel=DATA)]
ValidationFraction = Annotated[
    float | None,
    typer.Option("--validation-fraction", help="Part of the documents to hold out.", rich_help_panel=DATA),
]
TextField = Annotated[str | None, typer.Option("--text-field", help="Field of the text.", rich_help_panel=DATA)]
BlockSize = Annotated[int | None, typer.Option("--block-size", help="Tokens per example.", rich_help_panel=DATA)]
MaxDocuments = Annotated[
    int | None, typer.Option("--max-documents", help="Read no more than these.", rich_help_panel=DATA)
]

LearningRate = Annotated[float | None, typer.Option("--learning-rate", rich_help_panel=TRAINING)]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", help="Optimizer steps.", rich_help_panel=TRAINING)]
Epochs = Annotated[float | None, typer.Option("--epochs", rich_help_panel=TRAINING)]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", help="Examples per device and step.", rich_help_panel=TRAINING)
]
Accumulation = Annotated[int | None, typer.Option("--gradient-accumulation-steps", rich_help_panel=TRAINING)]
BFloat16 = Annotated[bool | None, typer.Option("--bf16/--no-bf16", rich_help_panel=TRAINING)]
SaveSteps = Annotated[int | None, typer.Option("--save-steps", rich_help_panel=TRAINING)]
LoggingSteps = Annotated[int | None, typer.Option("--logging-steps", rich_help_panel=TRAINING)]

KEYS = {
    "model": "model",
    "tokenizer": "tokenizer",
    "out": "output_dir",
    "seed": "seed",
    "adapt": "adapt",
    "dtype": "dtype",
    "lora_r": "lora.r",
    **{name: f"data.{name}" for name in ("train", "validation", "validation_fraction", "text_field")},
    **{name: f"data.{name}" for name in ("block_size", "max_documents")},
    **{name: f"training.{name}" for name in ("learning_rate", "max_steps", "save_steps", "logging_steps", "bf16")},
    "epochs": "training.num_train_epochs",
    "batch_size": "training.per_device_train_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
}


def block_size_for(model: str) -> int:
    """256 tokens, or all that a model takes; what cannot be read is told when it is loaded."""
    from codehead.errors import ConfigurationError
    from codehead.models.shape import model_shape

    try:
        return min(256, model_shape(model).positions or 256)
    except ConfigurationError:
        return 256


def overrides(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration keys that the given options set; `--set` comes last."""
    from codehead.training.blocks import parse_assignment

    given = {KEYS[name]: value for name, value in parameters.items() if name in KEYS and value is not None}
    for key, value in given.items():
        if isinstance(value, str) and value.startswith("{"):
            given[key] = parse_assignment(f"{key}={value}")[1]
    own = {name: value for name, value in parameters.items() if name not in KEYS}  # --seed is the run's
    layer = {f"decision.{name}": value for name, value in decision.given(own).items()}
    return {**given, **layer, **dict(map(parse_assignment, parameters["assignments"] or []))}
