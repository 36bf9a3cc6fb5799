"""Options that several commands share, those of a decision layer, and where a command may write."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from codehead.boundaries import system_failure
from codehead.config import DecisionConfig
from codehead.config.blocks import parse_assignment
from codehead.errors import ConfigurationError
from codehead.models.named import model_shape

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
Speed = Annotated[
    str | None,
    typer.Option("--speed", help="How many times fewer multiply-adds per token than Softmax's, such as 4x."),
]

TextField = Annotated[str | None, typer.Option("--text-field", help="Field that holds the text.", rich_help_panel=DATA)]
MaxDocuments = Annotated[
    int | None, typer.Option("--max-documents", help="Maximum number of documents to read.", rich_help_panel=DATA)
]


RUN_OPTIONS: dict[str, tuple[type, str, str | None, str]] = {
    "tokenizer": (str, "tokenizer", None, "Hub id, folder, or '{train: bpe, vocab_size: 8192}'."),
    "out": (str, "output_dir", None, "Folder of the run (output_dir)."),
    "seed": (int, "seed", None, "Seed of the run."),
    "train": (str, "data.train", DATA, "Training text: hub id or local file."),
    "validation": (str, "data.validation", DATA, "Validation text: hub id or local file."),
    "validation_fraction": (float, "data.validation_fraction", DATA, "Share of the documents to hold out."),
    "text_field": (str, "data.text_field", DATA, "Field that holds the text."),
    "block_size": (int, "data.block_size", DATA, "Tokens per example."),
    "max_documents": (int, "data.max_documents", DATA, "Maximum number of documents to read."),
    "learning_rate": (float, "training.learning_rate", TRAINING, "Learning rate."),
    "max_steps": (int, "training.max_steps", TRAINING, "Optimizer steps."),
    "epochs": (float, "training.num_train_epochs", TRAINING, "Passes over the training text."),
    "batch_size": (int, "training.per_device_train_batch_size", TRAINING, "Examples per device and batch."),
    "gradient_accumulation_steps": (
        int, "training.gradient_accumulation_steps", TRAINING, "Batches per optimizer step."
    ),
    "bf16": (bool, "training.bf16", TRAINING, "Mixed precision in bfloat16."),
    "save_steps": (int, "training.save_steps", TRAINING, "Steps between checkpoints."),
    "logging_steps": (int, "training.logging_steps", TRAINING, "Steps between logged losses."),
}  # fmt: skip
"""Options of `pretrain` and `finetune`: type, the configuration key that it sets, panel of the help, and help."""
KEYS = {
    **{name: name for name in ("model", "adapt", "dtype")},
    "lora_r": "lora.r",
    **{name: key for name, (_, key, *_) in RUN_OPTIONS.items()},
}
"""Parameter of a command → the configuration key that it sets."""


def block_size_for(model: str) -> int:
    """256 tokens, or as many as a model takes; loading reports a model that cannot be read."""
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


def show(*parts: Any) -> None:
    """Print tables and sentences."""
    console = Console(highlight=False)
    for part in parts:
        console.print(part)


def number_table(*columns: str, first: str = "", **options: Any) -> Table:
    """An empty table: names in its `first` column, then numbers in `columns`."""
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
    return _with(command, map(_of_field, fields(DecisionConfig)))


def run_options(command: Command) -> Command:
    """Give a command the RUN_OPTIONS, then those of a decision layer; its seed is the run's."""
    limits: dict[str, Any] = {"seed": {"min": 0, "max": LARGEST_SEED}}
    own = [
        _option(name, kind, help=help, rich_help_panel=panel, **limits.get(name, {}))
        for name, (kind, _, panel, help) in RUN_OPTIONS.items()
    ]
    return _with(command, [*own, *map(_of_field, fields(DecisionConfig))])


def _with(command: Command, options: Iterable[inspect.Parameter]) -> Command:
    """The command with more options, except those that it already has."""
    signature = inspect.signature(command, eval_str=True)
    found = {entry.name: entry for entry in signature.parameters.values() if entry.kind is not entry.VAR_KEYWORD}
    for option in options:
        found.setdefault(option.name, option)
    command.__signature__ = signature.replace(parameters=list(found.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: entry.annotation for name, entry in found.items()}
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


def _of_field(entry: Field[Any]) -> inspect.Parameter:
    flag, is_told = OPTIONS_OF.get(entry.name), entry.default not in (MISSING, None, 0, False)
    return _option(
        entry.name,
        list[str] if flag else KINDS.get(str(entry.type).split(" |")[0], str),
        flag,
        help=entry.metadata["help"],
        metavar="KEY=VALUE" if flag else None,
        show_default=str(entry.default) if is_told else False,
        rich_help_panel=DECISION,
    )


def _option(name: str, kind: Any, flag: str | None = None, **told: Any) -> inspect.Parameter:
    """A keyword of a command, None unless its option is given: by default `--name`, or for a bool also `--no-name`."""
    words = name.replace("_", "-")
    option = typer.Option(flag or f"--{words}" + (f"/--no-{words}" if kind is bool else ""), **told)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


# Where a command may write: checked before any work is done.


def expanded(path: Path | None) -> Path | None:
    """The path that an option names, with `~` expanded: a shell leaves `--out=~/coded` as it is."""
    return None if path is None else Path(os.path.expanduser(path))


def check_folder(out: Path) -> None:
    """Raise ConfigurationError if the folder of --out cannot be made or written into.

    Causes: a file in its place or above it, a name that is too long, a place that is read-only.
    """
    _check_place(out, out)


def _check_place(out: Path, folder: Path) -> None:
    """Raise ConfigurationError if nothing can be written for --out in a folder; leaves nothing there."""
    place = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not os.path.isdir(place):
        raise ConfigurationError(f"--out is {str(out)!r}, but {str(place)!r} is a file; name another folder")
    try:
        with suppress(FileNotFoundError):
            out.lstat()  # raises for a name that is too long
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
    if os.path.isdir(out):
        raise ConfigurationError(f"--out is {str(out)!r}, which is a folder; name a file in it")
    if os.path.lexists(out) and not overwrite:
        raise ConfigurationError(f"--out {str(out)!r} exists already; choose another file or use --overwrite")
    _check_place(out, out.parent)
