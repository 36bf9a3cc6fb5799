"""`codehead evaluate`: measure a checkpoint on a text, or on tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codehead.cli import options as opt
from codehead.cli.options import check_file
from codehead.errors import ConfigurationError
from codehead.processes import is_main

if TYPE_CHECKING:
    from rich.table import Table

    from codehead.lab.result import Result


OF_ENCODER = ("encoder_layers", "prompts", "answer_tokens")
OF_DATA = (
    "block_size", "decoder", "packed", "max_documents", "text_field", "as_text", "subset", "new_tokens", "repeats",
    "encoder", *OF_ENCODER,
)  # fmt: skip
OF_TASKS = ("num_fewshot", "limit")
"""Options that only --encoder, --data or --tasks reads."""


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder, hub id or GGUF file, coded or not.")],
    data: Annotated[
        str | None, typer.Option("--data", help="Text or records: hub id or local file (.txt .jsonl .json .parquet).")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", help="Tasks of lm-evaluation-harness, comma-separated: names, groups, or .yaml files."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", callback=opt.expanded, help="Result file to write.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the --out file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Tokenizer to use instead of the model's own.")
    ] = None,
    batch_size: opt.ForwardExamples = 8,
    block_size: opt.ExampleTokens = None,
    decoder: Annotated[
        str | None, typer.Option("--decoder", help="Decoder that ranks the tokens: likelihood, hamming, …")
    ] = None,
    packed: opt.Packed = None,
    max_documents: Annotated[int | None, typer.Option("--max-documents", min=1)] = None,
    text_field: Annotated[str | None, typer.Option("--text-field", help="Field that holds the text.")] = None,
    as_text: Annotated[
        bool | None, typer.Option("--as-text", help="Read records as plain text: prompt, then response.")
    ] = None,
    subset: Annotated[str | None, typer.Option("--subset", help="Configuration of a hub data set.")] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(
            "--new-tokens", min=1, help="Tokens per timed generation.", show_default="32, or as many as the model takes"
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=0, help="Timed generations; 0 for none.", show_default="5")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", help="Also answer instruction records; BERTScore encoder: hub id, local folder or minilm."
        ),
    ] = None,
    encoder_layers: Annotated[
        int | None, typer.Option("--encoder-layers", min=1, help="Layer of the encoder.", show_default="as published")
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option("--prompts", min=1, help="Records to answer, from the start of the data.", show_default="128"),
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option("--answer-tokens", min=1, help="Maximum tokens per answer.", show_default="64")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="Examples before a question.", show_default="the task's")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Documents per task, for a quick look.")] = None,
) -> None:
    """Measure next-token accuracy, likelihood, speed, size and answers on --data, or the metrics of --tasks."""
    given = {name: context.params[name] for name in (*OF_DATA, *OF_TASKS) if context.params[name] is not None}
    _check_kind(data, tasks, given)
    check_file(out, overwrite)
    names = [name.strip() for entry in tasks or () for name in entry.split(",") if name.strip()]
    result = _measured(model, data, names, {"tokenizer_name": tokenizer, "batch_size": batch_size, **given})
    if out is not None and is_main():
        result.write(out)
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        _show(_task_table(result) if data is None else _data_table(result), out)


def _check_kind(data: str | None, tasks: list[str] | None, given: dict[str, Any]) -> None:
    """Raise ConfigurationError unless one of --data and --tasks is given, with only its own options."""
    if (data is None) == (not tasks):
        raise ConfigurationError(
            "give either --data (a text) or --tasks (names of lm-evaluation-harness, or .yaml files), not "
            + ("neither" if data is None else "both")
        )
    foreign, right, wrong = (OF_DATA, "--data", "--tasks") if tasks else (OF_TASKS, "--tasks", "--data")
    _refuse(given, foreign, f"it belongs to {right}; with {wrong}, omit it")
    if "encoder" in given:
        _refuse(given, ("as_text",), "a text asks for no answer; omit it, or --encoder")
    else:
        _refuse(given, OF_ENCODER, "it belongs to --encoder; name one, or omit it")


def _refuse(given: dict[str, Any], names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if name in given:
            raise ConfigurationError(f"--{name.replace('_', '-')} is {given[name]!r}, but {reason}")


def _measured(model: str, data: str | None, tasks: list[str], options: dict[str, Any]) -> Result:
    from codehead.training.loop import shown

    with shown() as show:
        if data is not None:
            from codehead.lab.measure import evaluate_checkpoint

            return evaluate_checkpoint(model, data, **options, progress=show)
        from codehead.lab.harness import run_tasks

        return run_tasks(model, tasks, **options, progress=show)


def _show(table: Table, out: Path | None) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(table)
    if out is not None:
        console.print(f"Written to {out}", markup=False, soft_wrap=True)


def _task_table(result: Result) -> Table:
    """A line for every metric of every task, then of the groups with values of their own."""
    from rich.table import Table

    table = Table(title=f"{result.name} on {', '.join(result.config['tasks'])}")
    table.add_column("task")
    table.add_column("metric")
    for name in ("value", "n"):
        table.add_column(name, justify="right")
    for kind in ("tasks", "groups"):
        for task, record in result.metrics[kind].items():
            for metric, found in record["metrics"].items():
                table.add_row(task, metric, _with_error(found), f"{record['samples']:,}")
    return table


def _with_error(found: dict[str, float | None]) -> str:
    """Value ± standard error; a dash for a value that is not finite."""
    error = _number(found["stderr"])
    return (_number(found["value"]) or "–") + (f" ± {error}" if error else "")


def _data_table(result: Result) -> Table:
    """Name and value of every metric that applies."""
    from rich.table import Table

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
        *_answer_lines(values.get("answers")),
        ("tokens per second", _number(speed["tokens_per_second"] if speed else None)),
        ("head parameters", f"{size['head_parameters']:,}"),
        ("bytes stored", f"{size['bytes_stored']:,}"),
        ("bytes resident", f"{size['bytes_resident']:,}"),
        ("bytes read per token", f"{size['bytes_read_per_token']:,}"),
    ]
    table = Table(title=f"{result.name} on {result.config['data']}", show_header=False)
    for name, value in lines:
        if value:
            table.add_row(name, value)
    return table


def _answer_lines(answers: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The number of answers and their BERTScore; nothing without an encoder."""
    if answers is None:
        return []
    scores = answers["bertscore"]
    return [
        (
            "answers",
            f"{answers['prompts']:,} scored by {scores['encoder']['name']}, layer {scores['encoder']['layers']}",
        ),
        ("records too long to answer", f"{answers['skipped']:,}" if answers["skipped"] else ""),
        ("BERTScore precision", _number(scores["precision"])),
        ("BERTScore recall", _number(scores["recall"])),
        ("BERTScore F1", _number(scores["f1"])),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4f}"
