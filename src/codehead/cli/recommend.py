"""`codehead recommend`: which decision layer fits, what it costs, and what it can be expected to keep."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codehead.boundaries import command
from codehead.cli import options as opt

if TYPE_CHECKING:
    from rich.table import Table

    from codehead.evaluation.budget import Allocation
    from codehead.evaluation.expectations import SetUp, Value

COSTS = {
    "bytes_stored": "bytes stored",
    "bytes_resident": "bytes resident",
    "bytes_read_per_token": "bytes read per token",
    "head_parameters": "parameters",
    "multiply_adds": "multiply-adds per token",
}
NOTE = (
    "Biases are in int8, Softmax in bf16; codewords stay packed. Unpacked to float32 (--unpacked) "
    "{:,} bytes are resident ({:.1%}), and short codewords are decoded faster."
)
BUILDS = {
    "convert": "It learns from the old head, and the rest of the model stays as it is:",
    "finetune": "It learns from the old head, then both from the text (training):",
}
UNKNOWN = "Expected: no number, for none of our committed results is of such decision layers."
INSTEAD = "In so many bytes the old head fits itself: it takes {:.1%} in int4, with nothing to learn (docs/picking.md)."
TIED = "This model ties its head to the input embedding, which stays: a code saves what is computed, not memory."


def recommend(
    model: Annotated[str, typer.Argument(help="Hub id, folder, GGUF file or config.json.")],
    budget: opt.Budget = None,
    bits: opt.Bits = None,
    speed: opt.Speed = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell which decision layer fits a budget, a codeword length or a speed, and the command that builds it.

    Give one of --budget, --bits and --speed. No weights are read.
    """
    from codehead.cli.allocation import chosen
    from codehead.evaluation.size import model_shape

    found = chosen(model_shape(model), budget, bits, speed)
    commands = _commands(model, budget, bits, speed)
    if as_json:
        typer.echo(json.dumps(_as_dict(found, commands), indent=2))
    else:
        _show(found, commands)


def _commands(model: str, budget: str | None, bits: int | None, speed: str | None) -> dict[str, str]:
    """What builds the decision layer: on a trunk that rests and, of a budget, with one that learns from the text."""
    given = (("--budget", budget), ("--bits", bits), ("--speed", speed))
    asked = next((name, str(value)) for name, value in given if value)
    text, end = "YOUR_TEXT", ("--out", "FOLDER")
    commands = {"convert": command("codehead", "convert", model, "--data", text, *asked, *end)}
    if budget is not None:
        trained = ("codehead", "finetune", "--model", model, "--train", text, *asked, "--adapt", "full", *end)
        commands["finetune"] = command(*trained)
    return commands


def _as_dict(found: Allocation, commands: dict[str, str]) -> dict[str, Any]:
    from dataclasses import asdict

    from codehead.cli.allocation import rows
    from codehead.evaluation.expectations import set_ups

    expected = []
    for set_up in set_ups():
        values = {name: asdict(value) for name, value in (set_up.at(found.byte_share) or {}).items()}
        described = {key: value for key, value in asdict(set_up).items() if key != "points"}
        expected.append({**described, "measured": list(set_up.measured), "expected": values or None})
    return {
        "decision": found.decision(),
        "rows": rows(found),
        "bytes_stored": found.bytes_stored,
        "byte_share": found.byte_share,
        "costs": _costs(found),
        "softmax": _softmax_costs(found),
        "expected": expected,
        "commands": commands,
    }


def _costs(found: Allocation) -> dict[str, int]:
    values = {**found.size.packed.as_dict(), "multiply_adds": found.multiply_adds}
    return {name: values[name] for name in COSTS}


def _softmax_costs(found: Allocation) -> dict[str, int]:
    from codehead.evaluation.budget import softmax_bytes, softmax_multiply_adds

    weights, products = softmax_bytes(found.shape), softmax_multiply_adds(found.shape)
    return dict(zip(COSTS, (weights, weights, weights, products, products), strict=True))


def _show(found: Allocation, commands: dict[str, str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from codehead.cli.allocation import told
    from codehead.evaluation.budget import int4_share
    from codehead.evaluation.expectations import set_ups

    console, whole = Console(highlight=False), _softmax_costs(found)
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    for name in ("this head", "Softmax", "ratio"):
        table.add_column(name, justify="right")
    for name, value in _costs(found).items():
        table.add_row(COSTS[name], f"{value:,}", f"{whole[name]:,}", f"{value / whole[name]:.1%}")
    console.print(told(found), markup=False, soft_wrap=True)
    console.print(table)
    unpacked = found.size.bytes_resident
    console.print(NOTE.format(unpacked, unpacked / whole["bytes_resident"]))
    if found.byte_share >= int4_share(found.shape):
        console.print(INSTEAD.format(int4_share(found.shape)))
    if found.shape.tied:
        console.print(TIED)
    console.print()
    console.print(_expected(found) if set_ups() else UNKNOWN)
    for name, line in commands.items():
        console.print(f"\n{BUILDS[name]}\n  {line}", markup=False, soft_wrap=True)


def _expected(found: Allocation) -> Table:
    """What our experiments came to at its share of the bytes, those with a hidden size like the model's first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from codehead.evaluation.expectations import set_ups

    title = f"What heads of {found.byte_share:.2%} of the bytes had of Softmax's in our experiments. Yours may differ."
    table = Table(box=SIMPLE_HEAD, show_edge=False, title=title, title_justify="left", title_style="")
    for name in ("top-1 accuracy", "perplexity"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("measured on a model")
    for set_up in sorted(set_ups(), key=lambda some: abs(math.log(some.hidden_size / found.shape.hidden_size))):
        source = ", ".join(part for part in (set_up.results, set_up.setting, _seeds(set_up.seeds)) if part)
        model = f"H={set_up.hidden_size:,}, V={set_up.num_classes:,}, after {set_up.learnt} ({source})"
        table.add_row(*_values(set_up, found.byte_share), model)
    return table


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _values(set_up: SetUp, share: float) -> tuple[str, str]:
    """Top-1 accuracy and perplexity at a share of bytes, or where they were measured instead."""
    values = set_up.at(share)
    if values is None:
        low, high = set_up.measured
        return "–", f"{low:.1%} to {high:.1%} only"
    top1, perplexity = values["top1_share"], values["perplexity_ratio"]
    return f"{_with_width(top1, 100, '.1f')}%", f"× {_with_width(perplexity, 1, '.2f')}"


def _with_width(value: Value, factor: float, form: str) -> str:
    """`95.8 ± 0.5`."""
    width = "" if value.half_width is None else f" ± {format(factor * value.half_width, form)}"
    return format(factor * value.mean, form) + width
