"""The store of prepared data and trained models: folders named after their inputs, so that nothing is made twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codehead.errors import ConfigurationError, DataError
from codehead.lab.protocols.protocol import Protocol, expand
from codehead.lab.result import canonical_json
from codehead.training.config import RunConfig
from codehead.training.data import Rows
from codehead.training.provenance import file_record, file_records, named_files
from codehead.training.sources import read_rows, texts_of

if TYPE_CHECKING:
    from datasets import Dataset


WEIGHTS = ("config.json", "*.safetensors", "tokenizer.json")
YOUNGER = ("distil",)  # keys that older stores do not know: ignored if unset
DIGITS = 12  # digits of the checksum in a folder's name


class Store:
    """A folder that several protocols may share: a run that two of them have in common is trained once.

    Lock its `root` (`training.folder.locked`) before writing: one command at a time uses it.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().resolve()

    def placed(self, values: Mapping[str, Any]) -> RunConfig:
        """The run of these values (fields of RunConfig without output_dir), validated and in its folder."""
        values = RunConfig.from_dict({**values, "output_dir": str(self.root)}).to_dict()  # with every default in it
        return RunConfig.from_dict({**values, "output_dir": str(self.run_folder(values))})

    def run_folder(self, values: Mapping[str, Any]) -> Path:
        """The folder of a run: all fields of RunConfig, variables expanded, whatever output_dir says.

        Data and files of a code are identified by content, models by their weights, and models trained in this store by
        the run that made them; data that a run does not read (its test data) does not count.
        """
        data = {key: value for key, value in values["data"].items() if key != "test"}
        data["train"] = file_records(_train_sources(data))
        data["validation"] = file_record(data["validation"]) if data.get("validation") else None
        unset = {key for key in YOUNGER if values.get(key) is None}
        identity = {
            **{key: value for key, value in values.items() if key != "output_dir" and key not in unset},
            "data": data,
            "model": self._identify(values["model"]),
            "tokenizer": self._identify(values.get("tokenizer")),
            **of_files(values.get("decision")),
        }
        return self.root / f"{_slug(values)}-{digest(identity)}"

    def _identify(self, value: Any) -> Any:
        """A folder of this store by its name, another by the checksums of its files, anything else unchanged."""
        if not isinstance(value, str):
            return value
        path = Path(value).expanduser()
        if path.is_absolute() and path.is_relative_to(self.root):
            return str(path.relative_to(self.root))
        return folder_record(path) if path.is_dir() else value


def folder_record(folder: Path) -> list[dict[str, Any]]:
    """Name, sha256 and bytes of the weights, the configuration and the tokenizer in a model's folder."""
    return [file_record(str(file)) for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]


def of_files(values: Any) -> dict[str, Any]:
    """`files`, the records of the files named in some values, or nothing."""
    found = named_files(values)
    return {"files": found} if found else {}


def _slug(values: Mapping[str, Any]) -> str:
    """The readable part of a run's folder name: `minrandom-50-mtl-80-seed-0`."""
    decision = values.get("decision") or {}
    parts = [decision.get(key) for key in ("code", "bits", "head", "width", "loss")] if decision else ["softmax"]
    words = [Path(str(part)).stem for part in parts if part is not None]
    return "-".join([*words, "seed", str(values.get("seed", 0))])


def digest(values: Mapping[str, Any]) -> str:
    """The beginning of the checksum of some JSON values."""
    return hashlib.sha256(canonical_json(values).encode("utf-8")).hexdigest()[:DIGITS]


# Shared by all cells of a protocol: the split of the documents and the tokenizers, made once.


READING = ("subset", "text_field", "as_text")  # how a source is read
SPLITS = ("train", "validation", "test")
LEFTOVERS = ".data-*.tmp"  # folders of preparations that did not finish


@dataclass(frozen=True)
class Context:
    """The files that the cells of a protocol use on this machine."""

    store: Store
    variables: dict[str, str]
    """Values of `${NAME}`."""
    folder: Path | None
    """Folder of prepared data; None if there is nothing to prepare."""
    data: dict[str, str]
    """The file of each split; empty if the protocol names its own."""
    tokenizers: dict[str, str]
    """The folder of every tokenizer that is trained on the training split, by its canonical description."""

    @property
    def is_prepared(self) -> bool:
        """Whether the data and the tokenizers exist."""
        return self.folder is None or self.folder.is_dir()


def prepare(protocol: Protocol, context: Context) -> None:
    """Write the split documents and the trained tokenizers into the store, unless they exist already.

    Nobody else may prepare in the store at the same time: leftovers of a killed process are removed. Raises
    DataError if the source cannot be read or a split is left empty.
    """
    for leftover in context.store.root.glob(LEFTOVERS):
        shutil.rmtree(leftover)
    if context.folder is not None and not context.is_prepared:
        _write_in_one_step(protocol, context.folder, expand(protocol.base["data"], context.variables))


def locate(protocol: Protocol, store: Store, variables: Mapping[str, str]) -> Context:
    """Where `prepare` writes, without writing."""
    specs = _tokenizer_specs(protocol)
    if protocol.split is None and not specs:
        return Context(store, dict(variables), None, {}, {})
    data = expand(protocol.base.get("data") or {}, variables)
    if not data.get("train"):
        raise ConfigurationError("base.data.train is missing; name the source of the training text")
    folder = store.root / f"data-{digest(_fingerprint(protocol, data))}"
    files = {split: str(folder / f"{split}.jsonl") for split in SPLITS} if protocol.split is not None else {}
    tokenizers = {canonical_json(spec): str(folder / _tokenizer_name(spec)) for spec in specs}
    return Context(store, dict(variables), folder, files, tokenizers)


def prepared_sources(protocol: Protocol, context: Context) -> list[str]:
    """The inputs of `prepare`; empty if there is nothing to prepare."""
    if context.folder is None:
        return []
    return _train_sources(expand(protocol.base["data"], context.variables))


def split_of(text: str, shares: Mapping[str, float]) -> str:
    """The split of a document, fixed by its content alone."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if place < shares["test"]:
        return "test"
    return "validation" if place < shares["test"] + shares["validation"] else "train"


def _write_in_one_step(protocol: Protocol, folder: Path, data: Mapping[str, Any]) -> None:
    """Fill a temporary folder and rename it at the end: a folder with the final name is complete."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    temporary.mkdir(parents=True)
    options: dict[str, Any] = {key: data[key] for key in READING if key in data}
    try:
        rows = read_rows(data["train"], limit=data.get("max_documents"), **options)
        if protocol.split is not None:
            rows = _write_splits(rows, protocol.split, temporary)
        _write_tokenizers(rows, _tokenizer_specs(protocol), temporary)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_splits(rows: Dataset, shares: Mapping[str, float], folder: Path) -> Dataset:
    """Write one JSONL file per split; returns the training rows."""
    splits = [split_of("\n".join(texts_of(row)), shares) for row in rows]
    for split in SPLITS:
        chosen = [i for i, name in enumerate(splits) if name == split]
        if not chosen:
            raise DataError(f"split {split!r} is left without a document of {len(rows)}; give more, or larger shares")
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for i in chosen:
                file.write(json.dumps(_record(rows[i]), ensure_ascii=False) + "\n")
    return rows.select([i for i, name in enumerate(splits) if name == "train"])


def _write_tokenizers(rows: Dataset, specs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    from codehead.training.tokenizer import train_bpe

    for spec in specs:
        train_bpe(Rows(rows, None).texts(), spec["vocab_size"]).save_pretrained(folder / _tokenizer_name(spec))


def _tokenizer_specs(protocol: Protocol) -> list[Mapping[str, Any]]:
    """All distinct tokenizers that the cells need trained."""
    specs = [entry.config["tokenizer"] for entry in protocol.entries if isinstance(entry.config.get("tokenizer"), dict)]
    return list({canonical_json(spec): spec for spec in specs}.values())


def _tokenizer_name(spec: Mapping[str, Any]) -> str:
    return f"tokenizer-{spec.get('vocab_size')}"


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in a form that `read_rows` reads back to the same row."""
    if "messages" in row:
        messages, given = row["messages"], row["given"]
        return {"prompt": messages[:given], "completion": messages[given:]} if given else {"messages": messages}
    return {"text": row["text"]} if "text" in row else {"prompt": row["prompt"], "completion": row["response"]}


def _fingerprint(protocol: Protocol, data: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the prepared files depend on."""
    return {
        "sources": file_records(_train_sources(data)),
        "options": {key: data.get(key) for key in (*READING, "max_documents")},
        "split": protocol.split,
        "tokenizers": _tokenizer_specs(protocol),
    }


def _train_sources(data: Mapping[str, Any]) -> list[str]:
    return [data["train"]] if isinstance(data["train"], str) else list(data["train"])
