"""The card of a checkpoint, `README.md`: what the model is, what it keeps, how to load it, which licence applies."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NAME = "README.md"
TAGS = ("codehead", "error-correcting-output-codes")
TEMPLATE = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)
"""The text that transformers fills into the Hub's card template for an upload."""
OWN = re.compile(r"<!-- codehead card (\w+)[^\n]*-->\n(.*?)<!-- end of the codehead card -->\n", re.DOTALL)
"""The part of a card that codehead writes: the digest of its text, and the text."""
HEADER = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)
"""The metadata of a card."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
LOAD = """\
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("this/folder")
```

codehead must be installed{extra}; it need not be imported. Without it transformers refuses the checkpoint, or ignores
what is added to it."""


@dataclass(frozen=True)
class Told:
    """What a model states in its card."""

    what: str
    keeps: str
    extra: str = ""
    """What else must be installed."""


def write(folder: Path, model: Any, measured: Mapping[str, Any] | None = None, *, tags: Sequence[str] = TAGS) -> None:
    """Write the card of a coded or screened model; `measured` is `before` and `after` of a conversion's record."""
    told: Told = model._told_in_card()
    base, licence = _origin(model)
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": list(tags)}
    header |= {"base_model": base, "license": licence}
    parts = {
        "What it is": f"`{type(model).__name__}` of transformers. {told.what}",
        "What it keeps": _compared(measured) if measured else told.keeps,
        "How to load it": LOAD.format(extra=told.extra),
        "Licence": _rights(base, licence),
    }
    own = "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items()) + "\n"
    lines = [f"{name}: {json.dumps(value)}" for name, value in header.items() if value]  # JSON is YAML
    digest = _digest(own)
    begin = f"<!-- codehead card {digest}: written at every save, until somebody edits it; text outside of it stays -->"
    text = "\n".join(["---", *lines, "---", "", begin, own + "<!-- end of the codehead card -->", ""])
    (folder / NAME).write_text(text, encoding="utf-8")


def publish(card: Path, place: Path) -> None:
    """Put a new card in its place; of an existing card, it replaces only codehead's part, and only if unedited."""
    if os.path.lexists(place):
        try:
            old = place.read_text(encoding="utf-8")
        except (OSError, ValueError):  # not a card of ours
            return
        own, new = _own(old), _own(card.read_text(encoding="utf-8"))
        if not (own and new):
            return
        card.write_text(old.replace(own, new), encoding="utf-8")
    os.replace(card, place)


def withdraw(place: Path) -> None:
    """Remove codehead's part of a card, unless it was edited: a stock model is there now. Other text stays."""
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, ValueError):  # there is none, or not one of ours
        return
    own = _own(text)
    rest = text.replace(own, "")
    if own and HEADER.sub("", rest).strip():
        place.write_text(rest, encoding="utf-8")
    elif own:
        place.unlink()


def renew(folder: Path, model: Any) -> None:
    """Replace transformers' template by a model's card, keeping its tags, or renew codehead's part of another card."""
    from huggingface_hub import ModelCard

    place, tags = folder / NAME, TAGS
    made = ModelCard.load(place)
    if made.text == ModelCard.from_template(made.data, model_description=TEMPLATE).text:
        tags = tuple(dict.fromkeys((*TAGS, *(made.data.tags or ()))))
        place.unlink()
    with TemporaryDirectory(dir=folder) as stage:
        write(Path(stage), model, tags=tags)
        publish(Path(stage) / NAME, place)


def _own(text: str) -> str:
    """The part of a card that codehead wrote; empty if it was edited."""
    found = OWN.search(text)
    return found[0] if found and found[1] == _digest(found[2]) else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _origin(model: Any) -> tuple[str | None, str | None]:
    """The Hub name of the model that this one was made from, and its licence, as far as known locally."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.repocard import metadata_load

    name = str(getattr(model.config, "_name_or_path", ""))
    with suppress(Exception):  # names and cards may be anything
        is_folder = bool(name) and Path(name).is_dir()
        if not is_folder and not HUB_ID.fullmatch(name):
            return None, None
        card = Path(name) / NAME if is_folder else try_to_load_from_cache(name, NAME)
        known = (metadata_load(card) if isinstance(card, str | Path) and Path(card).is_file() else None) or {}
        base = (known.get("base_model") if TAGS[0] in (known.get("tags") or ()) else None) if is_folder else name
        licence = known.get("license")
        return base if isinstance(base, str) else None, licence if isinstance(licence, str) else None
    return None, None


def _rights(base: str | None, licence: str | None) -> str:
    made = f"Made from [{base}](https://huggingface.co/{base})." if base else "Made from another model."
    return f"{made} Its licence holds" + (f": {licence}." if licence else "; it was not found where this was saved.")


def _compared(measured: Mapping[str, Any]) -> str:
    """Both heads' metrics on held-out text, from the record of a conversion."""
    before, after = measured["before"], measured["after"]
    rows = [
        f"| {name} | {before[key]:{form}} | {after[key]:{form}} |"
        for key, name, form in (
            ("top1", "top-1 accuracy", ".1%"),
            ("top5", "top-5", ".1%"),
            ("perplexity", "perplexity", ".2f"),
        )
        if before.get(key) is not None and after.get(key) is not None
    ]
    table = "\n".join(["| | before | after |", "| --- | ---: | ---: |", *rows])
    return f"Measured on {after['tokens']:,} held-out tokens of the text it was converted with:\n\n{table}"
