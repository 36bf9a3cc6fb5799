"""`codehead recommend`: which decision layer fits, what it costs, and what it can be expected to keep."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codehead.cli import options as opt

if TYPE_CHECKING:
    from codehead.evaluation.budget import Allocation
    from codehead.evaluation.expected import SetUp, Value

COSTS = {
    "bytes_stored": "bytes stored",
    "bytes_resident": "bytes resident",
    "bytes_read_per_token": "bytes read per token",
    "head_parameters": "parameters",
    "multiply_adds": "multiply-adds per token",
}
NOTE = (
    "Weights in int8, of Softmax in bf16; resident and read: with the codewords unpacked to float32, as the plain "
    "matrix product has them. Where they stay packed (--packed), both are the bytes stored."
)
TRAINED = "It learns from the old head alone; where training is part of what was measured, codehead finetune goes on."
UNKNOWN = "Expected: no number, for none of our committed results is of such decision layers."
TIED = "This model ties its head to the input embedding, which stays: a code saves what is computed, not memory."


def recommend(
    model: Annotated[str, typer.Argument(help="Hub id, local folder or config.json.")],
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
    asked = next(
        f"{name} {value}" for name, value in (("--budget", budget), ("--bits", bits), ("--speed", speed)) if value
    )
    command = f"codehead convert {shlex.quote(model)} --data YOUR_TEXT {asked} --out FOLDER"
    if as_json:
        typer.echo(json.dumps(_as_dict(found, command), indent=2))
    else:
        _show(found, command)


def _as_dict(found: Allocation, command: str) -> dict[str, Any]:
    from dataclasses import asdict

    from codehead.evaluation.expected import set_ups

    expected = []
    for set_up in set_ups():
        values = {name: asdict(value) for name, value in (set_up.at(found.byte_share) or {}).items()}
        described = {key: value for key, value in asdict(set_up).items() if key != "points"}
        expected.append({**described, "measured": list(set_up.measured), "expected": values or None})
    return {
        "decision": found.decision(),
        "bytes_stored": found.bytes_stored,
        "byte_share": found.byte_share,
        "costs": _costs(found),
        "softmax": _softmax_costs(found),
        "expected": expected,
        "command": command,
    }


def _costs(found: Allocation) -> dict[str, int]:
    values = {**found.size.as_dict(), "multiply_adds": found.multiply_adds}
    return {name: values[name] for name in COSTS}


def _softmax_costs(found: Allocation) -> dict[str, int]:
    from codehead.evaluation.budget import softmax_bytes, softmax_multiply_adds

    weights, products = softmax_bytes(found.shape), softmax_multiply_adds(found.shape)
    return dict(zip(COSTS, (weights, weights, weights, products, products), strict=True))


def _show(found: Allocation, command: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from codehead.cli.allocation import told
    from codehead.evaluation.expected import set_ups

    console, whole = Console(highlight=False), _softmax_costs(found)
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    for name in ("this head", "Softmax", "ratio"):
        table.add_column(name, justify="right")
    for name, value in _costs(found).items():
        table.add_row(COSTS[name], f"{value:,}", f"{whole[name]:,}", f"{value / whole[name]:.1%}")
    console.print(told(found), markup=False, soft_wrap=True)
    console.print(table)
    console.print(NOTE)
    if found.shape.tied:
        console.print(TIED)
    if not set_ups():
        console.print(f"\n{UNKNOWN}")
    for set_up in set_ups():
        console.print(f"\n{_expectation(set_up, found.byte_share)}", markup=False)
    console.print(f"\n{command}", markup=False, soft_wrap=True)
    if set_ups():
        console.print(TRAINED)


def _expectation(set_up: SetUp, share: float) -> str:
    """What one of our experiments lets expect at a share of bytes, with its source."""
    low, high = set_up.measured
    where = ", ".join(part for part in (set_up.results, set_up.setting) if part)
    source = (
        f"{where}: measured on a model with H={set_up.hidden_size:,}, V={set_up.num_classes:,}, after "
        f"{set_up.learnt}; {set_up.seeds} seeds. Yours may differ."
    )
    values = set_up.at(share)
    if values is None:
        return f"Expected: no number, for {share:.2%} of the bytes is not between {low:.2%} and {high:.2%}.\n{source}"
    top1, perplexity = values["top1_share"], values["perplexity_ratio"]
    return (
        f"Expected at {share:.2%} of the bytes: {_with_width(top1, 100, '.1f')}% of Softmax's top-1 accuracy, "
        f"{_with_width(perplexity, 1, '.2f')} times its perplexity.\n{source}"
    )


def _with_width(value: Value, factor: float, form: str) -> str:
    """`95.8 ± 0.5`."""
    width = "" if value.half_width is None else f" ± {format(factor * value.half_width, form)}"
    return format(factor * value.mean, form) + width
