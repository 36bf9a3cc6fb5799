"""A folder of the store is named by what made its content, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codehead.lab.protocols.store import Store

MODEL = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "a.jsonl").write_text('{"text": "a story"}\n')
    return {"model": MODEL, "tokenizer": "gpt2", "data": {"train": str(tmp_path / "a.jsonl")}, "seed": 0}


def folder(store: Store, values: dict[str, Any], **changes: Any) -> Path:
    return Path(store.placed({**values, **changes}).output_dir)


def test_the_same_content_has_the_same_folder_wherever_it_lies(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jsonl").write_text('{"text": "a story"}\n')
    data = {"train": str(tmp_path / "elsewhere" / "a.jsonl")}
    store = Store(tmp_path / "store")
    assert folder(store, values, data=data) == folder(store, values)


def test_a_default_that_is_written_down_changes_nothing(values: dict[str, Any], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert folder(store, values, decision=None, adapt="full") == folder(store, values)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"model": {**MODEL, "n_embd": 32}},
        {"tokenizer": "opt"},
        {"decision": {"code": "minimal"}},
        {"training": {"learning_rate": 1e-3}},
    ],
)
def test_what_a_run_depends_on_changes_its_folder(
    values: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    store = Store(tmp_path / "store")
    assert folder(store, values, **changes) != folder(store, values)


def test_training_data_count_by_content_and_test_data_do_not_count(values: dict[str, Any], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    before = folder(store, values)
    (tmp_path / "test.jsonl").write_text('{"text": "unseen"}\n')
    assert folder(store, values, data={**values["data"], "test": str(tmp_path / "test.jsonl")}) == before
    (tmp_path / "a.jsonl").write_text('{"text": "another story"}\n')
    assert folder(store, values) != before


@pytest.mark.parametrize("name", ["code", "code_params.prototypes"])
def test_files_that_a_code_is_made_of_count_by_content(values: dict[str, Any], tmp_path: Path, name: str) -> None:
    store, file = Store(tmp_path / "store"), tmp_path / "mine.safetensors"
    decision = {"code": str(file)} if name == "code" else {"code": "itq", "code_params": {"prototypes": str(file)}}
    file.write_text("1")
    before = folder(store, values, decision=decision)
    assert folder(store, values, decision=decision) == before
    file.write_text("2")
    assert folder(store, values, decision=decision) != before


def test_a_local_model_counts_by_its_weights_and_one_of_the_store_by_its_run(
    values: dict[str, Any], tmp_path: Path
) -> None:
    def model(path: Path, weights: str) -> str:
        path.mkdir(parents=True)
        (path / "model.safetensors").write_text(weights)
        return str(path)

    store = Store(tmp_path / "store")
    one, same, other = (model(tmp_path / name, text) for name, text in (("a", "1"), ("b", "1"), ("c", "2")))
    values.pop("tokenizer")
    assert folder(store, values, model=one) == folder(store, values, model=same)
    assert folder(store, values, model=one) != folder(store, values, model=other)
    moved = Store(tmp_path / "moved")
    inside = folder(store, values, model=model(store.root / "backbone-123", "1")).name
    assert inside == folder(moved, values, model=model(moved.root / "backbone-123", "retrained")).name


def test_the_name_tells_a_person_what_it_is(values: dict[str, Any], tmp_path: Path) -> None:
    decision = {"code": "minrandom", "bits": 50, "head": "mtl", "width": 80}
    name = folder(Store(tmp_path), values, decision=decision, seed=3).name
    assert name.startswith("minrandom-50-mtl-80-seed-3-")
