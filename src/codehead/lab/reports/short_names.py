"""Short names for tables and pictures: `code 5%`, where a cell is called after its share of the bytes."""

from __future__ import annotations

import re

from codehead.lab.result import Result

NUMBER = re.compile(r"-(\d+(?:\.\d+)?)(?=-|$)")
NEAR = 2.0
"""How many times a cell's number may differ from the per cent that its head takes, and still stand for them."""


def short_name(result: Result, label: str, byte_share: float | None) -> str:
    """`low rank 5%` for the cell `low-rank-5`, with the share that the head really takes; else its `label`."""
    cell = str(result.config["cell"])
    numbers = list(NUMBER.finditer(cell))
    if len(numbers) != 1 or not byte_share or not 1 / NEAR < float(numbers[0][1]) / (100 * byte_share) < NEAR:
        return label
    (found,) = numbers
    named = f"{cell[: found.start()]} {100 * byte_share:{'.0f' if byte_share > 0.1 else '.1f'}}%{cell[found.end() :]}"
    return named.replace(".0%", "%").replace("-", " ")
