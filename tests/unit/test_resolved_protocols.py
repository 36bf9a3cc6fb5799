"""The committed protocols mean what they meant when their results were measured: same cells and records."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from codehead.lab.protocols.protocol import find, names
from codehead.lab.protocols.resolve import resolve
from codehead.lab.protocols.store import Store, locate
from codehead.lab.result import canonical_json

GOLDEN = json.loads(Path(__file__).with_name("resolved_protocols.json").read_text(encoding="utf-8"))
SOURCES = (
    "alpaca/alpaca.json",
    "tinystories/stories.jsonl",
    "books/bronte.txt",
    "books/darwin.txt",
    "books/shakespeare.txt",
    "tokenizers/gpt2/tokenizer.json",
    "stories260K/config.json",
    "models/SmolLM2-135M-Instruct/config.json",
    "models/gemma-3-270m/config.json",
)


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files in the place of the data: each holds its own name."""
    folder = tmp_path_factory.mktemp("data")
    for name in SOURCES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return {
        "CODEHEAD_DATA": str(folder),
        "CODEHEAD_MODELS": str(folder / "models"),
        "STORIES260K": str(folder / "stories260K"),
        "DEMO_TEXT": str(folder / "demo"),
    }


def rows(name: str, variables: dict[str, str], out: Path) -> list[list[Any]]:
    """Of every cell its key, the place of its result, its backbone, its baseline, and what its result says."""
    protocol = find(name)
    context = locate(protocol, Store(out / "store"), variables)
    return [
        [
            cell.key,
            cell.result.relative_to(out).as_posix(),
            None if cell.backbone is None else cell.backbone.name,
            None if cell.entry.baseline is None else cell.entry.baseline.as_dict(),
            cell.record,
        ]
        for cell in resolve(protocol, context, out, protocol.entries)
    ]


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_committed_protocol_resolves_to_the_same_cells(name: str, variables: dict[str, str], tmp_path: Path) -> None:
    found = rows(name, variables, tmp_path)
    digest = hashlib.sha256(canonical_json(found).encode()).hexdigest()
    assert {"cells": len(found), "sha256": digest} == GOLDEN[name]


def test_every_protocol_of_the_catalogue_is_kept() -> None:
    assert sorted(GOLDEN) == sorted(names())
