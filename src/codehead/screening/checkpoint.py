"""From a checkpoint to a screened one: loading, text, hidden states that survive a stop, saving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from codehead.boundaries import library_bars_hidden
from codehead.errors import ConfigurationError
from codehead.models.hidden import hidden_states
from codehead.screening.build import OWN_TEXT, POSITIONS, Progress, check, own_text, room, screen
from codehead.screening.screen import Settings
from codehead.training.data import Collator, check_vocabulary, load_examples
from codehead.training.loop import Stages
from codehead.training.model import load_model
from codehead.training.tokenizer import load_tokenizer

STAGE = ".hidden"
HIDDEN = f"{STAGE}.safetensors"
"""In the folder of the screened checkpoint, until that is written: what took longest."""
BLOCK, BATCH = 256, 8


def screen_checkpoint(
    name: str,
    out: Path,
    *,
    data: str | None = None,
    positions: int = POSITIONS,
    text_field: str | None = None,
    dtype: str = "auto",
    show: Progress = lambda what, done, total: None,
    **options: Any,
) -> Settings:
    """Screen the model called `name` as `codehead.screening.build.screen` does, and save it with its tokenizer.

    Raises:
        ConfigurationError, DataError, CheckpointError: as loading, reading and screening do; `out` holds no more than
            the hidden states then.
    """
    model, tokenizer = load_model(name, dtype=dtype).eval(), load_tokenizer(name)
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
    check(model, positions=positions, **{name: value for name, value in options.items() if name != "bits"})
    source = data or OWN_TEXT
    described = {"model": name, "data": source, "positions": positions, "dtype": str(model.dtype)}
    hidden = _kept(out, described)
    if hidden is None:
        batches = (
            _batches(data, tokenizer, text_field, min(BLOCK, room(model))) if data else own_text(model, positions, show)
        )
        hidden = hidden_states(model, batches, positions, lambda done, total: show("hidden states", done, total))
        Stages(out).save(STAGE, {"hidden": hidden}, described)
    screen(model, hidden=hidden, data=source, progress=show, **options)
    with library_bars_hidden():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    (out / HIDDEN).unlink()
    settings: Settings = model.screen.settings
    return settings


def _batches(data: str, tokenizer: Any, text_field: str | None, block: int) -> Iterator[dict[str, Tensor]]:
    examples = load_examples(data, tokenizer, block_size=block, split="train", text_field=text_field)
    return Collator(tokenizer.pad_token_id).batches(examples, BATCH)


def _kept(out: Path, described: dict[str, Any]) -> Tensor | None:
    """Hidden states of the same model and text that are there already."""
    kept = Stages(out).load(STAGE)
    if kept is None:
        return None
    tensors, found = kept
    if found != described:
        raise ConfigurationError(
            f"{out / HIDDEN} holds hidden states of {found}, but {described} is asked for; delete it, or choose "
            "another folder"
        )
    return tensors["hidden"]
