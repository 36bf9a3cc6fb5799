"""The demo from end to end: with a tiny budget always, with its own as a slow test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codehead.errors import ConfigurationError
from codehead.heads import count_parameters
from codehead.lab.demo import corpus as pydocs
from codehead.lab.demo import experiment as demo
from codehead.lab.demo.experiment import CELLS, Budget, run_demo
from codehead.lab.demo.report import render_demo, tables
from codehead.lab.result import Result

TINY = Budget(
    vocabulary=320,
    hidden=16,
    layers=1,
    pretraining_steps=3,
    finetuning_steps=2,
    questions=4,
    timed_prompts=1,
    new_tokens=2,
    repeats=1,
)


@pytest.fixture(scope="module", autouse=True)
def few_names() -> Any:
    """A corpus of 300 names, so that tokenising takes no time."""
    full = pydocs.read_corpus()
    few = pydocs.Corpus(
        {split: texts[:300] for split, texts in full.texts.items()},
        {split: pairs[:300] for split, pairs in full.pairs.items()},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "read_corpus", lambda: few)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    run_demo(out, budget=TINY)
    return out


def metrics(out: Path) -> dict[str, dict[str, Any]]:
    """Everything measured that is not a time, by head."""
    results = [Result.read(path) for path in sorted((out / "results").glob("*.json"))]
    return {result.config["cell"]: {**result.metrics, "train_seconds": None, "history": None} for result in results}


def test_every_head_is_measured_on_the_same_tokens(finished: Path) -> None:
    measured = metrics(finished)
    assert list(measured) == sorted(CELLS)
    assert len({values["test"]["tokens"] for values in measured.values()}) == 1
    assert measured["softmax"]["decision"] is None
    assert measured["minimal"]["decision"]["bits"] == 9
    for name, bits in (("minimal-mtl", 9), ("minrandom-mtl", 48)):
        width = measured[name]["decision"]["width"]
        assert measured[name]["size"]["head_parameters"] == count_parameters("mtl", 16, bits, width=width)
        assert abs(measured[name]["size"]["head_parameters"] / (16 * 320 / 2) - 1) < 0.2


def test_every_head_starts_from_the_same_pretrained_checkpoint(finished: Path) -> None:
    records = [json.loads(path.read_text()) for path in (finished / "store").glob("*/run.json")]
    (backbone,) = [record for record in records if isinstance(record["config"]["model"], dict)]
    heads = [record for record in records if record is not backbone]
    assert {record["config"]["model"] for record in heads} == {backbone["config"]["output_dir"]}
    assert len(heads) == len(CELLS)
    assert all(record["config"]["seed"] == 0 for record in heads)


def test_the_report_has_table_pictures_and_answers(finished: Path) -> None:
    text = render_demo(finished).read_text()
    for label in ("Softmax", "Minimal ECOC (9, 0)", "MinRandom ECOC (48, 0)", "MinRandom MTL-ECOC (48,"):
        assert f"| {label}" in text
        assert f"- **{label}" in text
    assert {path.name for path in finished.glob("*.png")} == {"tradeoff.png", "curves.png"}
    assert len(tables(finished)) == 2


def test_the_same_seed_gives_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    run_demo(tmp_path, budget=TINY)
    assert metrics(tmp_path) == metrics(finished)


def test_a_second_start_does_nothing_again_and_counts_all_work(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    units = 0

    def count(stage: str, done: int) -> None:
        nonlocal units
        units += done

    run_demo(finished, budget=TINY, progress=count)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before
    assert units == TINY.units


def test_another_seed_in_the_same_folder_is_refused(finished: Path) -> None:
    with pytest.raises(ConfigurationError, match="choose another"):
        run_demo(finished, seed=1, budget=TINY)


@pytest.mark.slow
def test_the_demo_teaches_every_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "read_corpus", pydocs.read_corpus)  # all names
    run_demo(tmp_path)
    top1 = {name: values["test"]["top1"] for name, values in metrics(tmp_path).items()}
    assert top1["softmax"] > 0.12
    assert top1["minrandom-mtl"] > 0.6 * top1["softmax"]
    assert top1["minrandom"] > top1["minimal"]
