"""`codehead calibrate`: scales for the bits of a coded checkpoint, so that its perplexity is honest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from codehead.cli import options as opt

HELD_OUT = 0.2
"""Of the documents: measured before and after, not fitted to."""


def calibrate(
    model: Annotated[str, typer.Argument(help="Hub id or local folder of a coded checkpoint.")],
    data: Annotated[str, typer.Option("--data", help="Text that it was not trained on: hub id or local file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the calibrated checkpoint.")],
    per_bit: Annotated[
        bool, typer.Option("--per-bit/--temperature", help="A scale for every bit, or one for all.")
    ] = True,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="That the scales are fitted to.")] = 20_000,
    max_documents: opt.MaxDocuments = None,
    text_field: opt.TextField = None,
    block_size: Annotated[
        int | None,
        typer.Option(
            "--block-size", min=2, help="Tokens per example.", show_default="256, or all that the model takes"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples per forward pass.")] = 8,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the weights: auto, float32, bfloat16, float16.")] = "auto",
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=opt.LARGEST_SEED, help="Of which documents are held out.")
    ] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
) -> None:
    """Scale the bits of a coded checkpoint so that it is as sure of a token as it is right; the rest stays as it is.

    A fifth of the documents is held out: the model is measured on it before and after.
    """
    from rich.console import Console

    from codehead.cli.change import show_change
    from codehead.cli.output import check_folder
    from codehead.conversion import recalibrate
    from codehead.training.config import RunConfig
    from codehead.training.progress import shown

    check_folder(out)
    config = RunConfig.from_dict(
        {
            "model": model,
            "output_dir": str(out),
            "data": {
                "train": data, "validation_fraction": HELD_OUT, "block_size": block_size or opt.block_size_for(model),
                "max_documents": max_documents, "text_field": text_field,
            },
            "calibrate": {"tokens": tokens, "per_bit": per_bit},
            "training": {"per_device_train_batch_size": batch_size},
            "seed": seed,
            "dtype": dtype,
        }
    )  # fmt: skip
    with shown(Console(stderr=True, highlight=False)) as show:
        record = recalibrate(config, overwrite=overwrite, show=show)
    show_change(record, "before", "after")
    found = record["calibration"]
    least, most = min(found["scales"]), max(found["scales"])
    Console(highlight=False).print(
        f"Bits scaled by {least:.3g} to {most:.3g}, fitted to {found['tokens']:,} other tokens. Saved to {out}",
        markup=False,
        soft_wrap=True,
    )
