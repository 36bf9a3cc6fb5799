"""`codehead convert` and `codehead recommend`: a smaller head for a model that is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from codehead.evaluation.budget import Allocation
    from codehead.evaluation.size import ModelShape

Budget = Annotated[str, typer.Option("--budget", help="Bytes of the new head, as a share of the old one's in bf16.")]
HELD_OUT = 0.05
"""Of the documents: measured before and after, not learnt from."""


def recommend(
    model: Annotated[str, typer.Argument(help="Hub id, local folder or config.json.")],
    budget: Budget = "5%",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell which decision layer fits a budget, what it weighs, and the command that builds it."""
    from rich.console import Console

    from codehead.evaluation.budget import allocate
    from codehead.evaluation.size import model_shape

    shape = model_shape(model)
    found = allocate(shape, read_budget(budget))
    if as_json:
        typer.echo(json.dumps({"decision": found.decision(), "bytes_in_bf16": found.bytes_stored}, indent=2))
        return
    console = Console(highlight=False)
    console.print(_told(shape, found), markup=False, soft_wrap=True)
    console.print(
        f"codehead convert {model} --data YOUR_TEXT --budget {budget} --out FOLDER", markup=False, soft_wrap=True
    )


def convert(
    model: Annotated[str, typer.Argument(help="Hub id or local folder of a stock causal language model.")],
    data: Annotated[str, typer.Option("--data", help="Text like yours: hub id or local file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the converted checkpoint.")],
    budget: Budget = "5%",
    steps: Annotated[int, typer.Option("--steps", min=1, help="In which the new head learns from the old one.")] = 500,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Of the text that it learns from.")] = 100_000,
    max_documents: Annotated[int | None, typer.Option("--max-documents", min=1, help="Read no more.")] = None,
    text_field: Annotated[str | None, typer.Option("--text-field", help="Field of the text.")] = None,
    block_size: Annotated[int, typer.Option("--block-size", min=2, help="Tokens per example.")] = 256,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples per forward pass.")] = 8,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the weights: auto, float32, bfloat16, float16.")] = "auto",
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Scale the bits on a tenth of the text, set aside.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
) -> None:
    """Give a trained model a coded head of a few percent of the bytes, which learns from the old one.

    The rest of the model stays as it is. A twentieth of the documents is held out: both heads are measured on it. A
    conversion that was stopped goes on where it was when the same command is given again.
    """
    from rich.console import Console

    from codehead.cli.change import show_change
    from codehead.cli.output import check_folder
    from codehead.conversion import convert as run
    from codehead.evaluation.budget import allocate
    from codehead.evaluation.size import model_shape
    from codehead.training.config import RunConfig
    from codehead.training.progress import shown

    check_folder(out)
    shape = model_shape(model)
    found = allocate(shape, read_budget(budget))
    config = RunConfig.from_dict(
        {
            "model": model,
            "output_dir": str(out),
            "data": {
                "train": data, "validation_fraction": HELD_OUT, "block_size": block_size,
                "max_documents": max_documents, "text_field": text_field,
            },
            "decision": {**found.decision(), "seed": seed},
            "distil": {"steps": steps, "tokens": tokens, "seed": seed},
            "calibrate": {} if calibrate else None,
            "training": {"per_device_train_batch_size": batch_size},
            "seed": seed,
            "dtype": dtype,
        }
    )  # fmt: skip
    console = Console(stderr=True, highlight=False)
    console.print(_told(shape, found), markup=False, soft_wrap=True)
    with shown(console) as show:
        record = run(config, overwrite=overwrite, show=show)
    show_change(record, "old head", "new head")
    Console(highlight=False).print(f"Saved to {out}", markup=False, soft_wrap=True)


def read_budget(text: str) -> float:
    """`5%` or `0.05` as 0.05; a ConfigurationError otherwise."""
    from codehead.errors import ConfigurationError

    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigurationError(f"--budget is {text!r}; give a share of the old head's bytes, such as 5% or 0.05")
    return share


def _told(shape: ModelShape, found: Allocation) -> str:
    whole = 2 * shape.num_classes * shape.hidden_size
    parts = [f"{found.bits} bits", f"dense rows for {found.shortlist:,} tokens"]
    parts += ["a bias for every token"] if found.token_bias else []
    return (
        f"H = {shape.hidden_size:,}, V = {shape.num_classes:,}: {', '.join(parts)}. {found.bytes_stored:,} bytes, "
        f"{found.bytes_stored / whole:.2%} of the Softmax head's {whole:,} in bf16."
    )
