"""Options that several commands share, and the configuration keys that the training options set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

DECISION, DATA, TRAINING = "Decision layer", "Data", "Training"

Params = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="KEY=VALUE", help="An option of the design; may be repeated."),
]

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

Code = Annotated[str | None, typer.Option("--code", help="Design, or a saved codebook.", rich_help_panel=DECISION)]
Bits = Annotated[int | None, typer.Option("--bits", help="Codeword length n.", rich_help_panel=DECISION)]
Head = Annotated[str | None, typer.Option("--head", help="linear, mtl, tower, chain, …", rich_help_panel=DECISION)]
Width = Annotated[
    int | None, typer.Option("--width", help="Hidden width d of mtl, tower, chain.", rich_help_panel=DECISION)
]
Loss = Annotated[str | None, typer.Option("--loss", help="bitwise or codeword.", rich_help_panel=DECISION)]
Decoder = Annotated[
    str | None,
    typer.Option("--decoder", help="likelihood, hamming, … (docs/decoders.md).", rich_help_panel=DECISION),
]
Shortlist = Annotated[
    int | None,
    typer.Option("--shortlist", help="Dense rows for so many frequent tokens.", rich_help_panel=DECISION),
]
TokenBias = Annotated[
    bool | None,
    typer.Option("--token-bias/--no-token-bias", help="A bias for every token.", rich_help_panel=DECISION),
]
Start = Annotated[
    str | None,
    typer.Option(
        "--start",
        help="random, old_head (near the Softmax head), logistic (fits of the bits).",
        rich_help_panel=DECISION,
    ),
]

PACKED = "Keep codewords packed in memory: a 32nd of the bytes; on a CPU long ones are then faster, short ones slower."
Packed = Annotated[bool | None, typer.Option("--packed/--unpacked", help=PACKED, show_default="as the checkpoint says")]

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

DECISION_OPTIONS = ("code", "bits", "head", "width", "loss", "decoder", "shortlist", "token_bias", "start")
KEYS = {
    "model": "model",
    "tokenizer": "tokenizer",
    "out": "output_dir",
    "seed": "seed",
    "adapt": "adapt",
    "dtype": "dtype",
    "lora_r": "lora.r",
    **{name: f"decision.{name}" for name in DECISION_OPTIONS},
    **{name: f"data.{name}" for name in ("train", "validation", "validation_fraction", "text_field")},
    **{name: f"data.{name}" for name in ("block_size", "max_documents")},
    **{name: f"training.{name}" for name in ("learning_rate", "max_steps", "save_steps", "logging_steps", "bf16")},
    "epochs": "training.num_train_epochs",
    "batch_size": "training.per_device_train_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
}


OF_CODES = ("num_classes", "bits", "seed")
OF_HEADS = ("hidden_size", "num_bits", "bits", "width")
"""Arguments of designs and heads that have options of their own."""


def block_size_for(model: str) -> int:
    """256 tokens, or all that a model takes; what cannot be read is told when it is loaded."""
    from codehead.errors import ConfigurationError
    from codehead.evaluation.size import model_shape

    try:
        return min(256, model_shape(model).positions or 256)
    except ConfigurationError:
        return 256


def key_values(flag: str, pairs: list[str] | None, taken: Sequence[str] = ()) -> dict[str, Any]:
    """`KEY=VALUE` strings of a flag as keyword arguments; a value that is not JSON is a string.

    ConfigurationError for what is no such string, and for keys that are `taken`: given by options of their own.
    """
    from codehead.errors import ConfigurationError

    values = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ConfigurationError(
                f"{flag} {pair!r} is not KEY=VALUE; write the name of the option, =, and its value"
            )
        if key in taken:
            raise ConfigurationError(f"{flag} {pair!r} sets what has an option of its own; use that")
        try:
            values[key] = json.loads(value)
        except (ValueError, RecursionError):
            values[key] = value
    return values


def overrides(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration keys that the given options set; `--set` comes last."""
    from codehead.training.blocks import parse_assignment

    given = {KEYS[name]: value for name, value in parameters.items() if name in KEYS and value is not None}
    for key, value in given.items():
        if isinstance(value, str) and value.startswith("{"):
            given[key] = parse_assignment(f"{key}={value}")[1]
    return {**given, **dict(map(parse_assignment, parameters["assignments"] or []))}
