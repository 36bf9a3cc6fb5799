"""`codehead params`: what the usual decision layers would weigh in a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from codehead.config import ModelShape

NOTES = (
    "Weights in bf16. Resident: weights, packed codebook, and the codeword matrix that the matmul decoder keeps "
    "unpacked in float32. Read per token: weights and that matrix."
)
TIED = (
    "This model ties its head to the input embedding, which stays ({embedding} bytes): a code saves what is read "
    "per token, not memory."
)
UNTIED = "The input embedding is not counted. If a model ties its head to it, the embedding stays."


def params(
    model: Annotated[
        str | None, typer.Argument(help="Hub id, folder, GGUF file or config.json.", show_default=False)
    ] = None,
    hidden_size: Annotated[int | None, typer.Option("--hidden-size", min=1, help="H, instead of a model.")] = None,
    vocab_size: Annotated[int | None, typer.Option("--vocab-size", min=2, help="V, instead of a model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the last-layer parameters and bytes of the usual configurations."""
    from codehead.config import ModelShape
    from codehead.errors import ConfigurationError
    from codehead.evaluation.size import compare_configurations
    from codehead.models.shape import model_shape

    if model is not None and hidden_size is None and vocab_size is None:
        shape = model_shape(model)
    elif model is None and hidden_size is not None and vocab_size is not None:
        shape = ModelShape(hidden_size, vocab_size)
    else:
        raise ConfigurationError("give either a model, or both --hidden-size and --vocab-size")
    rows = compare_configurations(shape)
    if as_json:
        values = {"hidden_size": shape.hidden_size, "vocab_size": shape.num_classes, "tied": shape.tied}
        typer.echo(json.dumps({**values, "configurations": rows}, indent=2))
    else:
        _show(shape, rows)


def _show(shape: ModelShape, rows: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title = f"Decision layers for H = {shape.hidden_size:,}, V = {shape.num_classes:,}"
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))  # fits 80 columns
    table.add_column("configuration (n, d)", no_wrap=True)
    for name in ("parameters", "share of\nSoftmax", "bytes\nresident", "bytes read\nper token"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["configuration"],
            f"{row['head_parameters']:,}",
            f"{row['share_of_softmax']:.2%}",
            f"{row['bytes_resident']:,}",
            f"{row['bytes_read_per_token']:,}",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(NOTES)
    embedding = f"{2 * shape.hidden_size * shape.num_classes:,}"
    console.print(TIED.format(embedding=embedding) if shape.tied else UNTIED)
