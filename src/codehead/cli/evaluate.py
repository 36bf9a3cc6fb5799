"""`codehead evaluate`: measure a checkpoint on a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codehead.cli.output import check_file

if TYPE_CHECKING:
    from codehead.evaluation.result import Result


def evaluate(
    model: Annotated[str, typer.Argument(help="Local folder or hub id, coded or not.")],
    data: Annotated[str, typer.Option("--data", help="Hub id or local file (.txt .jsonl .json .parquet).")],
    out: Annotated[Path | None, typer.Option("--out", help="Result file to write.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="If not the model's own.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples per forward pass.")] = 8,
    block_size: Annotated[
        int | None,
        typer.Option(
            "--block-size", min=2, help="Tokens per example.", show_default="256, or all that the model takes"
        ),
    ] = None,
    decoder: Annotated[
        str | None, typer.Option("--decoder", help="hamming, manhattan, euclidean or likelihood.")
    ] = None,
    max_documents: Annotated[int | None, typer.Option("--max-documents", min=1)] = None,
    text_field: Annotated[str | None, typer.Option("--text-field", help="Field of the text.")] = None,
    subset: Annotated[str | None, typer.Option("--subset", help="Configuration of a hub data set.")] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option("--new-tokens", min=1, help="Per timed generation.", show_default="32, or what the model takes"),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=0, help="Timed generations; 0 for none.")] = 5,
) -> None:
    """Measure next-token accuracy, likelihood, bits, speed and size on a text."""
    from rich.console import Console

    from codehead.evaluation.checkpoint import evaluate_checkpoint
    from codehead.training.progress import shown

    check_file(out, overwrite)
    with shown(Console(stderr=True)) as show:
        result = evaluate_checkpoint(
            model,
            data,
            tokenizer_name=tokenizer,
            batch_size=batch_size,
            block_size=block_size,
            decoder=decoder,
            max_documents=max_documents,
            text_field=text_field,
            subset=subset,
            new_tokens=new_tokens,
            repeats=repeats,
            progress=lambda done, total: show("evaluating", done, total),
        )
    if out is not None:
        result.write(out)
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        _show(result, out)


def _show(result: Result, out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.name} on {result.config['data']}", show_header=False)
    for name, value in _lines(result):
        table.add_row(name, value)
    console = Console(highlight=False)
    console.print(table)
    if out is not None:
        console.print(f"Written to {out}", markup=False, soft_wrap=True)


def _lines(result: Result) -> list[tuple[str, str]]:
    """Name and value of every metric that applies."""
    values = result.metrics
    size, speed = values["size"], values.get("generation")
    lines = [
        ("tokens scored", f"{values['tokens']:,}"),
        (f"top-1 accuracy ({values['decoder']})", f"{values['top1']:.4f}"),
        (f"top-5 accuracy ({values['decoder']})", f"{values['top5']:.4f}"),
        ("perplexity", _number(values["perplexity"])),
        ("bits per byte", _number(values["bits_per_byte"])),
        ("mean loss per node", _number(values["node_loss"])),
        ("bit accuracy", _number(values["bit_accuracy"])),
        ("tokens per second", _number(speed["tokens_per_second"] if speed else None)),
        ("head parameters", f"{size['head_parameters']:,}"),
        ("bytes resident", f"{size['bytes_resident']:,}"),
        ("bytes read per token", f"{size['bytes_read_per_token']:,}"),
    ]
    return [line for line in lines if line[1]]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4f}"
