"""Where prepared data and trained models lie: in folders named by what made them, so that nothing is made twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codehead.lab.result import canonical_json
from codehead.training.config import RunConfig
from codehead.training.lock import locked
from codehead.training.provenance import file_record, named_files

WEIGHTS = ("config.json", "*.safetensors", "tokenizer.json")
YOUNGER = ("distil",)  # keys that older stores do not know: unset, they count for nothing
DIGITS = 12  # of the checksum, in a folder's name


class Store:
    """A folder that several protocols may share: what two of them have in common is trained once."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().resolve()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other command out of the store; the system lifts the lock of a process that was killed.

        Raises ConfigurationError if another command is in it.
        """
        with locked(self.root):
            yield

    def data_folder(self, fingerprint: Mapping[str, Any]) -> Path:
        """The folder of documents and tokenizers that `fingerprint` describes."""
        return self.root / f"data-{digest(fingerprint)}"

    def placed(self, values: Mapping[str, Any]) -> RunConfig:
        """The run of these values (fields of RunConfig without output_dir), validated and in its folder."""
        values = RunConfig.from_dict({**values, "output_dir": str(self.root)}).to_dict()  # with every default in it
        return RunConfig.from_dict({**values, "output_dir": str(self.run_folder(values))})

    def run_folder(self, values: Mapping[str, Any]) -> Path:
        """The folder of a run: all fields of RunConfig, variables expanded, whatever output_dir says.

        Data, and files that a code is made of, count by their content, models by their weights, and those trained in
        this store by the run that made them; what a run does not read (its test data) does not count.
        """
        data = {key: value for key, value in values["data"].items() if key != "test"}
        sources = [data["train"]] if isinstance(data["train"], str) else data["train"]
        data["train"] = [file_record(source) for source in sources]
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
        """A folder of this store by its name, another by the checksums of its files, anything else as it is."""
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
    """`files`, the records of those that are named in some values, or nothing."""
    found = named_files(values)
    return {"files": found} if found else {}


def _slug(values: Mapping[str, Any]) -> str:
    """What a person sees of a run in a folder's name: `minrandom-50-mtl-80-seed-0`."""
    decision = values.get("decision") or {}
    parts = [decision.get(key) for key in ("code", "bits", "head", "width", "loss")] if decision else ["softmax"]
    words = [Path(str(part)).stem for part in parts if part is not None]
    return "-".join([*words, "seed", str(values.get("seed", 0))])


def digest(values: Mapping[str, Any]) -> str:
    """The beginning of the checksum of some JSON values."""
    return hashlib.sha256(canonical_json(values).encode("utf-8")).hexdigest()[:DIGITS]
