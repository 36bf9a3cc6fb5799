"""What a command has changed of a model, as a table."""

from __future__ import annotations

from typing import Any

MEASURES = {
    "top1": ("top-1 accuracy", "{:.2%}"),
    "top5": ("top-5 accuracy", "{:.2%}"),
    "perplexity": ("perplexity", "{:,.2f}"),
    "bits_per_byte": ("bits per byte", "{:.4f}"),
    "bytes_in_bf16": ("bytes of the head, stored", "{:,}"),
}


def show_change(record: dict[str, Any], *names: str) -> None:
    """Print what was measured `before` and `after` a change of a model, in columns of these names."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    before, after = record["before"], record["after"]
    table = Table(title=f"{before['tokens']:,} held-out tokens", box=SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    for name in (*names, "ratio"):
        table.add_column(name, justify="right")
    for name, (label, form) in MEASURES.items():
        old, new = before[name], after[name]
        if old is not None and new is not None:
            table.add_row(label, form.format(old), form.format(new), f"{new / old:.3f}" if old else "–")
    Console(highlight=False).print(table)
