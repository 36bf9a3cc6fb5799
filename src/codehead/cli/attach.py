"""`codehead attach`: give a model a new decision layer, untrained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from codehead.boundaries import command
from codehead.cli import options as opt
from codehead.cli.output import check_empty_folder


def attach(
    model: Annotated[str, typer.Argument(help="Hub id, folder or GGUF file of a causal language model.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the coded checkpoint.")],
    code: Annotated[str, typer.Option("--code", help="Design, or a saved codebook.")] = "minrandom",
    param: opt.Params = None,
    bits: Annotated[int | None, typer.Option("--bits", help="Codeword length n.")] = None,
    head: Annotated[str, typer.Option("--head", help="linear, mtl, tower, … (docs/heads.md).")] = "linear",
    width: Annotated[int | None, typer.Option("--width", help="Width d of an mtl head or a tower.")] = None,
    head_param: Annotated[
        list[str] | None,
        typer.Option("--head-param", metavar="KEY=VALUE", help="An option of the head, e.g. bias=true; repeatable."),
    ] = None,
    loss: Annotated[str, typer.Option("--loss", help="bitwise or codeword.")] = "bitwise",
    decoder: Annotated[
        str, typer.Option("--decoder", help="likelihood, hamming, … (docs/decoders.md).")
    ] = "likelihood",
    token_bias: Annotated[bool, typer.Option("--token-bias", help="Give every token a bias.")] = False,
    start: Annotated[
        str, typer.Option("--start", help="random, or old_head: weights near those of the Softmax head.")
    ] = "random",
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=opt.LARGEST_SEED, help="Of the codebook and of the head's weights.")
    ] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Replace the Softmax head of a model by a code and save it; the new head still has to be trained."""
    from rich.console import Console

    from codehead.evaluation.size import model_size
    from codehead.models import attach as attach_to
    from codehead.training.lock import locked
    from codehead.training.model import load_model
    from codehead.training.saving import save_whole
    from codehead.training.tokenizer import load_tokenizer

    options: dict[str, Any] = {
        "token_bias": token_bias,
        "start": start,
        "code_params": opt.key_values("--param", param, opt.OF_CODES),
        "head_params": opt.key_values("--head-param", head_param, opt.OF_HEADS),
    }
    check_empty_folder(out, overwrite)
    coded = load_model(model, dtype="stored")
    before = model_size(coded).head_parameters
    attach_to(coded, code, bits, head, width, loss, decoder, seed, **options, keep_head=False)
    tokenizer = load_tokenizer(model)
    with locked(out):
        save_whole(coded, tokenizer, out)
    after = model_size(coded).head_parameters
    state = "is untrained" if start == "random" else "starts near the old one"
    train = command("codehead", "finetune", "--model", out, "--train", "FILE", "--out", "FOLDER")
    Console(highlight=False).print(
        f"Saved to {out}: {after:,} parameters in the last layer, {before:,} before.\nIts new head {state}: {train}",
        markup=False,
        soft_wrap=True,
    )
