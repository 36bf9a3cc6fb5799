"""The demo from end to end: with a tiny model and little text always, with its own as a slow test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codehead.errors import CodeheadError
from codehead.heads import count_parameters
from codehead.lab import demo
from codehead.lab.demo import Corpus, read_corpus, run_demo
from codehead.lab.protocols.protocol import Protocol, find, merged
from codehead.lab.reports.report import render
from codehead.lab.result import Result

CONVERTED = ("converted-5",)


def tiny() -> Protocol:
    """The demo with a model of a few thousand parameters, a few steps, and short codes."""
    protocol = find("demo")
    model = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 1}
    short = {"max_steps": 3, "warmup_steps": 1, "save_steps": 2}
    backbone = {"model": model, "tokenizer": {"vocab_size": 320}, "training": short}
    convert = {
        "decision": {"bits": 16, "extra_bit_tokens": 40, "extra_bits": 8, "dense_rows": 4},
        "distil": {"steps": 2},
    }
    return replace(
        protocol,
        backbones={"pretrained": merged(protocol.backbones["pretrained"], backbone)},
        base=merged(protocol.base, {"training": short}),
        cells=merged(protocol.cells, {name: {"baseline": {"convert": convert}} for name in CONVERTED}),
        timing=replace(protocol.timing, prompts=1, new_tokens=2, repeats=1),
        answers=replace(protocol.answers, prompts=2, new_tokens=3),
    )


@pytest.fixture(scope="module", autouse=True)
def few_names() -> Any:
    """A corpus of some names, so that tokenising takes no time."""
    full = read_corpus()
    few = Corpus(
        {split: texts[:300] for split, texts in full.texts.items()},
        {split: pairs[:60] for split, pairs in full.pairs.items()},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "read_corpus", lambda: few)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    run_demo(tiny(), out)
    return out


def metrics(out: Path) -> dict[str, dict[str, Any]]:
    """Everything measured that is not a time, by head."""
    results = [Result.read(path) for path in sorted((out / "results").glob("*.json"))]
    return {result.config["cell"]: {**result.metrics, "train_seconds": None, "history": None} for result in results}


def test_every_head_is_measured_on_the_same_tokens(finished: Path) -> None:
    measured = metrics(finished)
    assert list(measured) == sorted(find("demo").cells)
    assert len({values["test"]["tokens"] for values in measured.values()}) == 1
    assert measured["softmax"]["decision"] is None
    assert measured["minimal"]["decision"]["bits"] == 9
    for name, bits in (("minimal-mtl", 9), ("minrandom-mtl", 48)):
        width = measured[name]["decision"]["width"]
        assert measured[name]["size"]["head_parameters"] == count_parameters("mtl", 16, bits, width=width)
        assert abs(measured[name]["size"]["head_parameters"] / (16 * 320 / 2) - 1) < 0.2


def test_every_head_starts_from_one_checkpoint_and_the_converted_ones_from_softmax(finished: Path) -> None:
    records = [json.loads(path.read_text()) for path in (finished / "store").glob("*/run.json")]
    (backbone,) = [record for record in records if isinstance(record["config"]["model"], dict)]
    heads = [record for record in records if record is not backbone]
    assert {record["config"]["model"] for record in heads} == {backbone["config"]["output_dir"]}
    assert len(heads) == len(find("demo").cells) - len(CONVERTED)
    measured = metrics(finished)
    assert all(measured[name]["decision"]["design"] == "learned" for name in CONVERTED)


def test_the_page_has_the_table_the_times_and_the_answers(finished: Path) -> None:
    text = render(finished / "results").markdown.read_text()
    for label in ("Softmax", "Minimal ECOC (9, 0)", "MinRandom ECOC (48, 0)", "MinRandom MTL-ECOC (48,"):
        assert f"| {label}" in text
        assert f"- **{label}" in text
    assert "Tokens/s" in text


def test_a_second_start_does_nothing_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    told: list[tuple[str, str]] = []
    run_demo(tiny(), finished, report=lambda *words: told.append(words))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before
    assert [status for _, status in told[:-1]] == ["reused"] * len(find("demo").cells)
    assert told[-1] == ("timing", "finished")


def test_a_run_that_failed_is_named_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(tiny(), cells={"softmax": {}, "minimal": {"decision": {"code": "minimal", "bits": 3}}})
    with pytest.raises(CodeheadError, match=r"minimal/seed-0 failed; see '.*minimal--seed-0\.txt', then run the same"):
        run_demo(broken, tmp_path)


@pytest.mark.slow
def test_the_demo_teaches_every_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "read_corpus", read_corpus)  # all names
    run_demo(find("demo"), tmp_path)
    top1 = {name: values["test"]["top1"] for name, values in metrics(tmp_path).items()}
    assert top1["softmax"] > 0.12
    assert top1["minrandom-mtl"] > 0.6 * top1["softmax"]
    assert top1["minrandom"] > top1["minimal"]
    assert top1["converted-5"] > 0.97 * top1["softmax"]
