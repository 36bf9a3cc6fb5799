"""What all cells of a protocol share: the split of the documents and the tokenizer, made once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codehead.errors import ConfigurationError, DataError
from codehead.evaluation.result import write_json
from codehead.protocols.protocol import Cell, Protocol, expand, merged
from codehead.training.provenance import file_record
from codehead.training.sources import read_rows

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")


def prepare(protocol: Protocol, folder: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """Write the split documents and the tokenizer into `folder`, unless they are there already.

    Returns the partial RunConfig that points a cell to them. Raises ConfigurationError if the folder was
    prepared from other data, DataError if a split is left empty.
    """
    base = expand(protocol.base, variables)
    shared: dict[str, Any] = {}
    if protocol.split is not None:
        shared["data"] = {split: str(folder / f"{split}.jsonl") for split in SPLITS}
    if isinstance(base.get("tokenizer"), dict):
        shared["tokenizer"] = str(folder / "tokenizer")
    if shared and not _is_ready(folder, _fingerprint(protocol, base)):
        _write(protocol, base, shared, folder)
    return shared


def point_to(cell: Cell, shared: Mapping[str, Any]) -> Cell:
    """The cell with its data and tokenizer taken from the prepared folder."""
    data = shared.get("data")  # its files hold the field `text`, whatever the source's was called
    config = merged(cell.config, {"data": {**data, "text_field": None}} if data else {})
    return Cell(
        cell.name,
        cell.setting,
        cell.seed,
        {**config, "tokenizer": shared.get("tokenizer", config.get("tokenizer"))},
    )


def split_of(text: str, shares: Mapping[str, float]) -> str:
    """The split of a document, fixed by its content alone."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if place < shares["test"]:
        return "test"
    return "validation" if place < shares["test"] + shares["validation"] else "train"


def _write(protocol: Protocol, base: Mapping[str, Any], shared: Mapping[str, Any], folder: Path) -> None:
    from codehead.training.tokenizer import train_bpe

    data = base.get("data") or {}
    if not data.get("train"):
        raise ConfigurationError("base.data.train is missing; name the source of the training text")
    rows = read_rows(
        data["train"],
        subset=data.get("subset"),
        text_field=data.get("text_field"),
        limit=data.get("max_documents"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    if protocol.split is not None:
        rows = _write_splits(rows, protocol.split, folder)
    if "tokenizer" in shared:
        texts = (text for column in rows.column_names for text in rows[column])
        train_bpe(texts, base["tokenizer"]["vocab_size"]).save_pretrained(shared["tokenizer"])
    write_json(folder / "prepared.json", _fingerprint(protocol, base))


def _write_splits(rows: Dataset, shares: Mapping[str, float], folder: Path) -> Dataset:
    """Write one JSONL file per split; returns the training rows."""
    splits = [split_of("\n".join(row.values()), shares) for row in rows]
    for split in SPLITS:
        chosen = [i for i, name in enumerate(splits) if name == split]
        if not chosen:
            raise DataError(f"split {split!r} is left without a document of {len(rows)}; give more, or larger shares")
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for i in chosen:
                file.write(json.dumps(_record(rows[i]), ensure_ascii=False) + "\n")
    return rows.select([i for i, name in enumerate(splits) if name == "train"])


def _record(row: Mapping[str, str]) -> dict[str, str]:
    """A row in a form that `read_rows` reads back to the same row."""
    return {"text": row["text"]} if "text" in row else {"prompt": row["prompt"], "completion": row["response"]}


def _fingerprint(protocol: Protocol, base: Mapping[str, Any]) -> dict[str, Any]:
    data = {key: value for key, value in (base.get("data") or {}).items() if key != "train"}
    source = file_record((base.get("data") or {}).get("train") or "")
    return {"source": source, "data": data, "split": protocol.split, "tokenizer": base.get("tokenizer")}


def _is_ready(folder: Path, fingerprint: dict[str, Any]) -> bool:
    path = folder / "prepared.json"
    if not path.is_file():
        return False
    if json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(fingerprint)):
        raise ConfigurationError(
            f"{str(folder)!r} was prepared from other data or settings; choose another --out or remove the folder"
        )
    return True
