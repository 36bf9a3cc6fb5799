"""`codehead attach`: give a model a new decision layer, untrained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from codehead.boundaries import command
from codehead.cli.decision import decision_options, given
from codehead.cli.output import check_empty_folder


@decision_options
def attach(
    model: Annotated[str, typer.Argument(help="Hub id, folder or GGUF file of a causal language model.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the coded checkpoint.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
    **decision: Any,
) -> None:
    """Replace the Softmax head of a model by a code and save it.

    Without --code, the code is one of the old head and starts near it; with another, the head still has to be trained.
    """
    from rich.console import Console

    from codehead.evaluation.size import model_size
    from codehead.models import attach as attach_to
    from codehead.models.surgery import describe
    from codehead.training.lock import locked
    from codehead.training.model import load_model
    from codehead.training.saving import save_whole
    from codehead.training.tokenizer import load_tokenizer

    check_empty_folder(out, overwrite)
    coded = load_model(model, dtype="stored")
    before = model_size(coded).head_parameters
    attach_to(coded, **given(decision), keep_head=False)
    tokenizer = load_tokenizer(model)
    with locked(out):
        save_whole(coded, tokenizer, out)
    after = model_size(coded).head_parameters
    state = "starts near the old one" if describe(coded, "tell").fresh == "" else "is untrained"
    train = command("codehead", "finetune", "--model", out, "--train", "FILE", "--out", "FOLDER")
    Console(highlight=False).print(
        f"Saved to {out}: {after:,} parameters in the last layer, {before:,} before.\nIts new head {state}: {train}",
        markup=False,
        soft_wrap=True,
    )
