"""`codehead fold`: a coded checkpoint as a stock one, which every tool reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from codehead.cli import options as opt
from codehead.cli.checkpoints import HELD_OUT, show_change
from codehead.cli.options import check_empty_folder, check_folder


def fold(
    model: Annotated[str, typer.Argument(help="Hub id or local folder of a coded checkpoint.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the stock checkpoint.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Text like yours, to approximate a bias per token that has no place."),
    ] = None,
    max_documents: opt.MaxDocuments = None,
    text_field: opt.TextField = None,
    block_size: opt.ExampleTokens = None,
    batch_size: opt.ForwardExamples = 8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write a coded model out as the stock model with the same logits, for tools that know no codes (GGUF, ONNX, MLX).

    The saving in size is given up. A bias per token, which convert gives by default, has no place in Llama, Qwen or
    Gemma: with --data it is approximated, and the model measured before and after on a fifth of the documents.
    """
    from rich.console import Console

    if data is None:
        check_empty_folder(out, overwrite)
        _fold(model, out)
    else:
        check_folder(out)
        size = block_size or opt.block_size_for(model)
        _fold_with_text(
            {
                "model": model,
                "output_dir": str(out),
                "data": {
                    "train": data, "validation_fraction": HELD_OUT, "block_size": size,
                    "max_documents": max_documents, "text_field": text_field,
                },
                "training": {"per_device_train_batch_size": batch_size},
            },
            overwrite,
        )  # fmt: skip
    Console(highlight=False).print(f"Saved to {out}", markup=False, soft_wrap=True)


def _fold(model: str, out: Path) -> None:
    from codehead.models import fold as fold_head
    from codehead.training.lock import locked
    from codehead.training.model import load_model
    from codehead.training.saving import save_whole
    from codehead.training.tokenizer import load_tokenizer

    folded = fold_head(load_model(model, dtype="stored"))
    with locked(out):
        save_whole(folded, load_tokenizer(model), out)


def _fold_with_text(config: dict[str, Any], overwrite: bool) -> None:
    from rich.console import Console

    from codehead.conversion import run_folding
    from codehead.training.config import RunConfig
    from codehead.training.progress import shown

    with shown(Console(stderr=True, highlight=False)) as show:
        record = run_folding(RunConfig.from_dict(config), overwrite=overwrite, show=show)
    show_change(record, "coded", "folded")
