"""`codehead code`: build a codebook, show its quality, keep it in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codehead.cli.options import check_file, key_values

if TYPE_CHECKING:
    from rich.table import Table

    from codehead.codes import Codebook, Quality

MAX_BARS = 16
"""The most bars of the histogram of row distances."""

BAR_WIDTH = 40
"""Characters of its longest bar."""


def code(
    design: Annotated[str, typer.Argument(help="Name of the coding design, e.g. minrandom.", show_default=False)],
    classes: Annotated[
        int, typer.Option("--classes", max=2**31 - 1, help="Number of classes (tokens), V.", show_default=False)
    ],
    bits: Annotated[
        int | None, typer.Option("--bits", help="Codeword length n.", show_default="the design's own")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random columns.")] = 0,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="KEY=VALUE", help="An option of the design; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Safetensors file to write.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Build a codebook and show how good it is: row and column separation, balance, size."""
    from codehead.codes import build, quality
    from codehead.config import DecisionConfig

    check_file(out, overwrite)
    config = DecisionConfig(code=design, bits=bits, seed=seed, code_params=key_values("--param", param or []))
    codebook = build(design, classes, bits=config.bits, seed=config.seed, **config.code_params)
    measured = quality(codebook)
    if out is not None:
        codebook.save(out)
    if as_json:
        typer.echo(json.dumps({**_identity(codebook), "quality": measured.as_dict()}, indent=2))
    else:
        _show(codebook, measured, out)


def _identity(codebook: Codebook) -> dict[str, Any]:
    return {
        "design": codebook.design,
        "num_classes": codebook.num_classes,
        "length": codebook.length,
        "ternary": codebook.is_ternary,
        "seed": codebook.seed,
        "params": codebook.params,
        "bytes": codebook.nbytes,
        "checksum": codebook.checksum,
    }


def _show(codebook: Codebook, measured: Quality, out: Path | None) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_measures(codebook, measured))
    console.print(_histogram(measured))
    if out is not None:
        typer.echo(f"Saved to {out}")


def _measures(codebook: Codebook, measured: Quality) -> Table:
    """The table of measures; what was only sampled says so."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    symbols = "−1, 0, +1" if codebook.is_ternary else "−1, +1"
    storage = f"{codebook.nbytes:,} bytes" if codebook.nbytes else "implicit: nothing stored"
    at_most = "" if measured.exact else "≤ "
    pairs = f"{'all' if measured.exact else 'a sample of'} {measured.pairs:,} pairs"
    column_pairs = f"{'all' if measured.columns_exact else 'a sample of'} {measured.column_pairs:,} pairs"
    columns_at_most = "" if measured.columns_exact else "≤ "
    column = "–" if measured.column_distance is None else f"{columns_at_most}{measured.column_distance:g}"

    table = Table(
        title=f"{codebook.design}: {codebook.num_classes:,} classes × {codebook.length:,} bits",
        box=SIMPLE_HEAD,
    )
    table.add_column("measure", style="bold")
    table.add_column("value", justify="right")
    table.add_column("", style="dim")
    table.add_row("row distance, least", f"{at_most}{measured.row_distance_min:g}", pairs)
    table.add_row("row distance, mean", f"{measured.row_distance_mean:.2f}", pairs)
    table.add_row("correctable bits", f"{at_most}{measured.correctable_bits}", "⌊(least row distance − 1) / 2⌋")
    table.add_row("column distance, least", column, column_pairs)
    table.add_row(
        "share of +1, mean",
        f"{measured.balance_mean:.3g}",
        f"from {measured.balance_min:.3g} to {measured.balance_max:.3g}",
    )
    table.add_row("symbols", symbols, storage)
    table.add_row(
        "checksum",
        codebook.checksum[:12],
        "of SHA-256" if codebook.seed is None else f"of SHA-256, seed {codebook.seed}",
    )
    return table


def _histogram(measured: Quality) -> Table:
    """Bars of the row distances, in at most MAX_BARS classes of equal width."""
    from rich.table import Table

    bins = _bins(measured.row_histogram)
    longest = max(pairs for _, pairs in bins)
    table = Table(title="row distances", box=None, padding=(0, 1), show_header=False)
    table.add_column(justify="right", style="bold")
    table.add_column(style="cyan", width=BAR_WIDTH)
    table.add_column(justify="right", style="dim")
    for label, pairs in bins:
        eighths = max(round(pairs / longest * BAR_WIDTH * 8), 1) if pairs else 0
        bar = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
        table.add_row(label, bar, f"{pairs:,}")
    return table


def _bins(histogram: dict[float, int]) -> list[tuple[str, int]]:
    """The histogram as (label, pairs), each distance on its own if there are few, else in ranges."""
    if len(histogram) <= MAX_BARS:
        return [(f"{distance:g}", pairs) for distance, pairs in histogram.items()]
    least, most = min(histogram), max(histogram)
    width = -(-(most - least + 1) // MAX_BARS)
    bins = []
    for number in range(int((most - least) // width) + 1):
        start = least + number * width
        pairs = sum(count for distance, count in histogram.items() if start <= distance < start + width)
        bins.append((f"{start:g} …", pairs))
    return bins
