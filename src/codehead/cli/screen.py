"""`codehead screen`: the same answers, faster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from codehead.screening.screen import Settings


def screen(
    model: Annotated[str, typer.Argument(help="Hub id or local folder of a stock causal language model.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the screened checkpoint.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Text like yours: hub id or local file; without, the model writes some."),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="fast (promised recall), or exact (the dense head's greedy text).")
    ] = "fast",
    recall: Annotated[
        float, typer.Option("--recall", help="Promised share of positions where the best token is found (fast).")
    ] = 0.999,
    certificate: Annotated[
        str, typer.Option("--certificate", help="Of mode exact: calibrated (may fail, rarely), or proof.")
    ] = "calibrated",
    bits: Annotated[
        int | None, typer.Option("--bits", help="Of the code, per token.", show_default="as few as do")
    ] = None,
    positions: Annotated[int, typer.Option("--positions", min=8, help="Hidden states that are used.")] = 12_000,
    text_field: Annotated[str | None, typer.Option("--text-field", help="Field of the text.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the weights: auto, float32, bfloat16, float16.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Give a model a code that finds the few tokens worth scoring. Nothing is trained, no weight changes.

    Hidden states are kept in --out while the work goes on: the same command goes on from there after a stop.
    """
    from rich.console import Console

    from codehead.cli.output import check_empty_folder
    from codehead.screening.checkpoint import HIDDEN, screen_checkpoint
    from codehead.training.progress import shown

    if not (out / HIDDEN).is_file():
        check_empty_folder(out, overwrite)
    with shown(Console(stderr=True, highlight=False)) as show:
        settings = screen_checkpoint(
            model, out, data=data, mode=mode, recall=recall, certificate=certificate, bits=bits, positions=positions,
            text_field=text_field, dtype=dtype, show=show,
        )  # fmt: skip
    Console(highlight=False).print(told(settings), f"Saved to {out}", sep="\n", markup=False, soft_wrap=True)


def told(settings: Settings) -> str:
    """What was promised, and what was measured."""
    code = f"{settings.bits} bits per token; {settings.candidates} of {settings.num_classes:,} rows are scored"
    measured = f"{settings.measured:.3%} at {settings.test_positions:,} other positions"
    if settings.mode == "fast":
        promise = (
            f"recall at least {settings.promised:.3%}, with {settings.confidence:.0%} confidence, on text like that of "
            f"the {settings.calibration_positions:,} calibration positions"
        )
        return f"{code}.\nPromised: {promise}. Measured: {measured}."
    if settings.factor == 1:
        return f"{code}.\nThe dense head decides wherever another token cannot be excluded by proof."
    return (
        f"{code}.\nThe dense head decides wherever another token cannot be excluded; that fails at no more than "
        f"{1 - settings.promised:.3%} of positions, with {settings.confidence:.0%} confidence. The best token was "
        f"among the candidates: {measured}."
    )
