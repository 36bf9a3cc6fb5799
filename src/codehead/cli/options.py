"""Options that several commands share, those of a decision layer, and where a command may write."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar, get_type_hints

import typer

from codehead.boundaries import system_failure
from codehead.config import DecisionConfig
from codehead.config.blocks import parse_assignment
from codehead.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

DECISION, DATA, TRAINING = "Decision layer", "Data", "Training"

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file of the run; options override its keys.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key, as in --set training.warmup_steps=100."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over, removing the run in the output folder.")]
LARGEST_SEED = 2**32 - 1  # numpy's

ExampleTokens = Annotated[
    int | None,
    typer.Option("--block-size", min=2, help="Tokens per example.", show_default="256, or as many as the model takes"),
]
ForwardExamples = Annotated[int, typer.Option("--batch-size", min=1, help="Examples per forward pass.")]
Dtype = Annotated[str, typer.Option("--dtype", help="Dtype of the weights: auto, float32, bfloat16, float16.")]

PACKED = "Keep codewords packed in memory, in 1/32 of the bytes."
Packed = Annotated[bool | None, typer.Option("--packed/--unpacked", help=PACKED, show_default="as the checkpoint says")]

Bits = Annotated[int | None, typer.Option("--bits", help="Codeword length n.", rich_help_panel=DECISION)]
BUDGET = "Bytes of the new head, as a share of the old one's in bf16, such as 5%."
Budget = Annotated[str | None, typer.Option("--budget", help=BUDGET)]
Speed = Annotated[
    str | None,
    typer.Option("--speed", help="How many times fewer multiply-adds per token than Softmax's, such as 4x."),
]

TextField = Annotated[str | None, typer.Option("--text-field", help="Field that holds the text.", rich_help_panel=DATA)]
MaxDocuments = Annotated[
    int | None, typer.Option("--max-documents", help="Maximum number of documents to read.", rich_help_panel=DATA)
]


class _RunOption(NamedTuple):
    """An option of `pretrain` and `finetune`: what it takes, and the configuration key that it sets."""

    kind: type
    key: str
    help: str | None = None
    panel: str | None = TRAINING


RUN_OPTIONS = {
    "tokenizer": _RunOption(str, "tokenizer", "Hub id, folder, or '{train: bpe, vocab_size: 8192}'.", None),
    "out": _RunOption(str, "output_dir", "Folder of the run (output_dir).", None),
    "seed": _RunOption(int, "seed", "Seed of the run.", None),
    "train": _RunOption(str, "data.train", "Training text: hub id or local file.", DATA),
    "validation": _RunOption(str, "data.validation", "Validation text: hub id or local file.", DATA),
    "validation_fraction": _RunOption(float, "data.validation_fraction", "Share of the documents to hold out.", DATA),
    "text_field": _RunOption(str, "data.text_field", "Field that holds the text.", DATA),
    "block_size": _RunOption(int, "data.block_size", "Tokens per example.", DATA),
    "max_documents": _RunOption(int, "data.max_documents", "Maximum number of documents to read.", DATA),
    "learning_rate": _RunOption(float, "training.learning_rate", "Learning rate."),
    "max_steps": _RunOption(int, "training.max_steps", "Optimizer steps."),
    "epochs": _RunOption(float, "training.num_train_epochs", "Passes over the training text."),
    "batch_size": _RunOption(int, "training.per_device_train_batch_size", "Examples per device and batch."),
    "gradient_accumulation_steps": _RunOption(
        int, "training.gradient_accumulation_steps", "Batches per optimizer step."
    ),
    "bf16": _RunOption(bool, "training.bf16", "Mixed precision in bfloat16."),
    "save_steps": _RunOption(int, "training.save_steps", "Steps between checkpoints."),
    "logging_steps": _RunOption(int, "training.logging_steps", "Steps between logged losses."),
}
KEYS = {
    **{name: name for name in ("model", "adapt", "dtype")},
    "lora_r": "lora.r",
    **{name: option.key for name, option in RUN_OPTIONS.items()},
}
"""Parameter of a command → the configuration key that it sets."""


def block_size_for(model: str) -> int:
    """256 tokens, or as many as a model takes; loading reports a model that cannot be read."""
    from codehead.models.named import model_shape

    try:
        return min(256, model_shape(model).positions or 256)
    except ConfigurationError:
        return 256


def overrides(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration keys that the given options set; `--set` comes last."""
    found = {KEYS[name]: value for name, value in parameters.items() if name in KEYS and value is not None}
    for key, value in found.items():
        if isinstance(value, str) and value.startswith("{"):
            found[key] = parse_assignment(f"{key}={value}")[1]
    own = {name: value for name, value in parameters.items() if name not in KEYS}  # --seed is the run's
    layer = {f"decision.{name}": value for name, value in given(own).items()}
    return {**found, **layer, **dict(map(parse_assignment, parameters["assignments"] or []))}


def number_table(*columns: str, first: str = "", **options: Any) -> Table:
    """An empty table: names in its `first` column, then numbers in `columns`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, **options)
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


# The options of a decision layer, generated from `DecisionConfig`: each field is an option with the field's help.


OPTIONS_OF = {"code_params": "--param", "head_params": "--head-param"}
"""Fields that are mappings: one option, repeated, gives a KEY=VALUE each."""
KINDS: dict[str, Any] = {"int": int, "bool": bool}
Command = TypeVar("Command", bound=Callable[..., Any])


def decision_options(command: Command) -> Command:
    """Give a command an option for every field of DecisionConfig; they arrive as keywords, None where not given."""
    return _with(command, [_of_field(entry) for entry in fields(DecisionConfig)])


def run_options(command: Command) -> Command:
    """Give a command the RUN_OPTIONS, then those of a decision layer."""
    own = [_of_run(name, option) for name, option in RUN_OPTIONS.items()]
    return _with(command, [*own, *(_of_field(entry) for entry in fields(DecisionConfig) if entry.name not in KEYS)])


def _with(command: Command, options: Sequence[inspect.Parameter]) -> Command:
    """The command with more options, except those that it already has."""
    signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
    own = [
        entry.replace(annotation=hints[entry.name])
        for entry in signature.parameters.values()
        if entry.kind is not entry.VAR_KEYWORD
    ]
    taken = {entry.name for entry in own}
    parameters = [*own, *(entry for entry in options if entry.name not in taken)]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {entry.name: entry.annotation for entry in parameters}
    return command


def given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of DecisionConfig that options set; mappings are read from their KEY=VALUE pairs."""
    names = [entry.name for entry in fields(DecisionConfig)]
    found = {name: parameters[name] for name in names if parameters.get(name) not in (None, [], ())}
    for name, flag in OPTIONS_OF.items():
        if name in found:
            found[name] = key_values(flag, found[name])
    return found


def key_values(flag: str, pairs: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` strings of a flag as keyword arguments; a value that is not JSON is a string."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ConfigurationError(
                f"{flag} {pair!r} is not KEY=VALUE; write the name of the option, =, and its value"
            )
        try:
            values[key] = json.loads(value)
        except (ValueError, RecursionError):
            values[key] = value
    return values


def _of_run(name: str, told: _RunOption) -> inspect.Parameter:
    limits: dict[str, Any] = {"min": 0, "max": LARGEST_SEED} if name == "seed" else {}
    option = typer.Option(*_flags(name, told.kind), help=told.help, rich_help_panel=told.panel, **limits)
    return _parameter(name, told.kind, option)


def _of_field(entry: Field[Any]) -> inspect.Parameter:
    is_mapping = entry.name in OPTIONS_OF
    kind = list[str] if is_mapping else KINDS.get(str(entry.type).split(" |")[0], str)
    default = None if entry.default in (MISSING, None, 0, False) else str(entry.default)
    option = typer.Option(
        *([OPTIONS_OF[entry.name]] if is_mapping else _flags(entry.name, kind)),
        help=entry.metadata["help"],
        metavar="KEY=VALUE" if is_mapping else None,
        show_default=default or False,
        rich_help_panel=DECISION,
    )
    return _parameter(entry.name, kind, option)


def _flags(name: str, kind: type) -> list[str]:
    flag = name.replace("_", "-")
    return [f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"]


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


# Where a command may write: checked before any work is done.


def check_folder(out: Path) -> None:
    """Raise ConfigurationError if the folder of --out cannot be made or written into.

    Causes: a file in its place or above it, a name that is too long, a place that is read-only.
    """
    _refuse_files(out)
    _try(out)


def _refuse_files(out: Path) -> None:
    for place in (out, *out.parents):
        if os.path.lexists(place) and not os.path.isdir(place):
            raise ConfigurationError(f"--out is {str(out)!r}, but {str(place)!r} is a file; name another folder")


def _try(out: Path) -> None:
    """Raise ConfigurationError if nothing can be written at --out; leaves nothing there."""
    try:
        with suppress(FileNotFoundError):
            out.lstat()  # raises for a name that is too long
        place = next(place for place in (out, *out.absolute().parents) if os.path.isdir(place))
        with tempfile.TemporaryDirectory(prefix=".codehead-", dir=place):
            pass
    except OSError as error:
        error.filename = None
        raise ConfigurationError(
            f"--out is {str(out)!r}, where nothing can be written: {system_failure(error)}"
        ) from None


def check_empty_folder(out: Path, overwrite: bool) -> None:
    """Raise ConfigurationError as `check_folder`, or if the folder holds files that may not be overwritten."""
    from codehead.training.folder import LOCK

    check_folder(out)
    if out.exists() and any(place.name != LOCK for place in out.iterdir()) and not overwrite:
        raise ConfigurationError(f"--out {str(out)!r} is not empty; choose another folder or use --overwrite")


def check_file(out: Path | None, overwrite: bool) -> None:
    """Raise ConfigurationError if the file of --out is a folder, or exists and may not be overwritten."""
    if out is None:
        return
    _refuse_files(out.parent)
    if os.path.isdir(out):
        raise ConfigurationError(f"--out is {str(out)!r}, which is a folder; name a file in it")
    if os.path.lexists(out) and not overwrite:
        raise ConfigurationError(f"--out {str(out)!r} exists already; choose another file or use --overwrite")
    _try(out)
