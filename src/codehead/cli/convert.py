"""`codehead convert`: a smaller head for a model that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from codehead.cli import options as opt


def convert(
    model: Annotated[str, typer.Argument(help="Hub id, folder or GGUF file of a stock causal language model.")],
    data: Annotated[str, typer.Option("--data", help="Text like yours: hub id or local file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the converted checkpoint.")],
    budget: Annotated[str | None, typer.Option("--budget", help=opt.BUDGET, show_default="5%")] = None,
    bits: opt.Bits = None,
    speed: opt.Speed = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Distillation steps.")] = 500,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of text to learn from.")] = 200_000,
    backbone_steps: Annotated[
        int,
        typer.Option("--backbone-steps", "--trunk-steps", min=0, help="Further steps, with LoRA on the backbone."),
    ] = 0,
    max_documents: Annotated[int | None, typer.Option("--max-documents", min=1, help="Read no more.")] = None,
    text_field: Annotated[str | None, typer.Option("--text-field", help="Field of the text.")] = None,
    block_size: Annotated[
        int | None,
        typer.Option(
            "--block-size", min=2, help="Tokens per example.", show_default="256, or all that the model takes"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples per forward pass.")] = 8,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the weights: auto, float32, bfloat16, float16.")] = "auto",
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Fit a temperature to a tenth of the text, set aside.")
    ] = True,
    packed: Annotated[bool, typer.Option("--packed/--unpacked", help=opt.PACKED)] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, max=opt.LARGEST_SEED, help="Of everything that is drawn.")] = 0,
    assignments: opt.Assignments = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
) -> None:
    """Give a trained model a coded head of a few percent of the bytes, which learns from the old one.

    The rest of the model stays as it is, unless --backbone-steps lets it learn to serve the new head. One
    document in twenty is held out: both heads are measured on it. A conversion that was stopped goes on where it was
    when the same command is given again, without --overwrite.
    """
    from rich.console import Console

    from codehead.cli.change import show_change
    from codehead.cli.output import check_folder
    from codehead.conversion import conversion_config, run_conversion
    from codehead.recommendation import recommend
    from codehead.training.blocks import parse_assignment
    from codehead.training.progress import shown

    check_folder(out)
    found = recommend(model, budget=budget, bits=bits, speed=speed)
    changes = dict(map(parse_assignment, assignments or []))
    config = conversion_config(
        model, data, out, found, steps=steps, tokens=tokens, backbone_steps=backbone_steps, calibrate=calibrate,
        packed=packed, batch_size=batch_size, block_size=block_size, max_documents=max_documents,
        text_field=text_field, dtype=dtype, seed=seed, changes=changes,
    )  # fmt: skip
    console = Console(stderr=True, highlight=False)
    changed = ", ".join(key for key in changes if key.startswith("decision."))
    note = f" --set {changed} changes that." if changed else ""
    console.print(found.config.told(found.shape) + note, markup=False, soft_wrap=True)
    with shown(console) as show:
        record = run_conversion(config, overwrite=overwrite, show=show)
    show_change(record, "old head", "new head")
    Console(highlight=False).print(f"Saved to {out}", markup=False, soft_wrap=True)
