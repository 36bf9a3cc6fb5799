"""Protocol files: what they may say, which cells they mean, what a restart runs again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from codehead.cli.protocol import _Left
from codehead.errors import ConfigurationError, DataError
from codehead.evaluation.result import Result
from codehead.heads import count_parameters
from codehead.protocols import backbones, cells, runner
from codehead.protocols.catalogue import find, names
from codehead.protocols.cells import cell_config
from codehead.protocols.preparation import Context, locate, prepare, split_of
from codehead.protocols.protocol import Protocol, expand, half_width, merged
from codehead.protocols.runner import failure_path, result_path, run_protocol
from codehead.protocols.store import Store
from codehead.training.folder import RunFolder
from codehead.training.provenance import file_records

FILE = """
name: tiny
reference: softmax
base:
  model: {model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2}
  tokenizer: {train: bpe, vocab_size: 300}
  data: {train: "${FOLDER}/text.jsonl", block_size: 8}
  training: {max_steps: 1, learning_rate: 3e-4}
split: {validation: 0.2, test: 0.2}
settings:
  small: {}
  large: {training: {max_steps: 2}}
cells:
  softmax: {}
  mtl: {decision: {code: minrandom, bits: 20, head: mtl, width: half}, training: {learning_rate: 1e-3}}
seeds: [0, 1]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"story number {i} of a long row of stories"}) + "\n" for i in range(50))
    )
    file = tmp_path / "tiny.yaml"
    file.write_text(FILE)
    return file


@pytest.fixture
def protocol(path: Path) -> Protocol:
    return Protocol.from_yaml(path)


def variables(path: Path) -> dict[str, str]:
    return {"FOLDER": str(path.parent)}


def context(protocol: Protocol, path: Path) -> Context:
    return locate(protocol, Store(path.parent / "store"), variables(path))


def test_plan_runs_every_head_of_a_seed_before_the_next_seed(protocol: Protocol) -> None:
    assert [cell.key for cell in protocol.plan()] == [
        f"{setting}/{head}/seed-{seed}"
        for seed in (0, 1)
        for setting in ("small", "large")
        for head in ("softmax", "mtl")
    ]


def test_setting_and_cell_are_laid_over_the_base(protocol: Protocol) -> None:
    (cell,) = protocol.plan(["large/mtl/seed-1"])
    assert cell.config["training"] == {"max_steps": 2, "learning_rate": 1e-3}
    assert (cell.config["seed"], cell.config["decision"]["seed"]) == (1, 1)
    assert protocol.base["training"] == {"max_steps": 1, "learning_rate": 3e-4}


def test_only_that_selects_nothing_names_the_cells(protocol: Protocol) -> None:
    with pytest.raises(ConfigurationError, match=r"selects no cell; the cells are small/softmax/seed-0"):
        protocol.plan(["sofmax"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds:", "sedes:", "unknown key 'sedes'; did you mean 'seeds'"),
        ("reference: softmax", "reference: softmx", "reference is 'softmx'"),
        ("code: minrandom", "code: minrandm", "unknown design 'minrandm'; did you mean 'minrandom'"),
        ("head: mtl", "head: mlt", "unknown head 'mlt'"),
        ("test: 0.2", "test: 0.7", "below 0.5"),
        ("seeds: [0, 1]", "seeds: [zero]", "seeds is"),
        ("  softmax: {}", "  soft/max: {}\n  softmax: {}", "'soft/max' cannot name a file"),
        ("name: tiny", "description: none", "missing name"),
        ("seeds: [0, 1]", "timing: {promts: 3}", "unknown key 'timing.promts'; did you mean 'prompts'"),
        ("seeds: [0, 1]", "answers: {prompts: 0}", "answers.prompts is 0"),
        ("  softmax: {}", "  softmax: {}\n  softmax: {}", "the key 'softmax' is given twice"),
        ("seeds: [0, 1]", "seeds: 3", "seeds is 3; give a list"),
        ("split: {validation: 0.2, test: 0.2}", "split: 0.1", "split is 0.1"),
        ("test: 0.2", "test: much", "below 0.5"),
        ("  softmax: {}", "  softmax: minimal", "cells.softmax is 'minimal'; it must be a block"),
        ("  small: {}", "  small: {data: text.jsonl}", "settings.small.data is 'text.jsonl'; it must be a block"),
        ("seeds: [0, 1]", "backbones: [opt]", "backbones is .*; it must be a block"),
        ("seeds: [0, 1]", "paper: 9", "paper is 9; the paper's protocols are 1 to 4"),
        ("seeds: [0, 1]", "batch_size: 0", "batch_size is 0"),
        ("seeds: [0, 1]", "batch_size: many", "batch_size is 'many'; give a whole number"),
        ("block_size: 8", "test: a.jsonl", "base.data.test is set, but split takes it"),
        ("softmax: {}", "softmax: {model: {backbone: opt}}", "starts from the backbone 'opt', which is unknown"),
    ],
)
def test_mistakes_are_named(path: Path, old: str, new: str, message: str) -> None:
    path.write_text(FILE.replace(old, new))
    with pytest.raises(ConfigurationError, match=message):
        Protocol.from_yaml(path)


def test_variables_are_expanded_and_a_missing_one_is_named() -> None:
    assert expand({"a": ["${X}/b", 3]}, {"X": "here"}) == {"a": ["here/b", 3]}
    with pytest.raises(ConfigurationError, match=r"needs \$\{CODEHEAD_DATA\}, which is not set.*--data-dir"):
        expand("${CODEHEAD_DATA}/stories.jsonl", {})


def test_merged_leaves_its_arguments_alone() -> None:
    base: dict[str, Any] = {"a": {"b": 1, "c": 2}}
    result = merged(base, {"a": {"b": 5}})
    result["a"]["c"] = 9
    assert (result, base) == ({"a": {"b": 5, "c": 9}}, {"a": {"b": 1, "c": 2}})


@pytest.mark.parametrize(("hidden", "classes", "bits"), [(128, 8192, 50), (128, 8192, 13), (128, 4096, 48)])
def test_half_width_is_the_nearest(hidden: int, classes: int, bits: int) -> None:
    half = classes * hidden / 2
    width = half_width(hidden, classes, bits)
    distances = [abs(count_parameters("mtl", hidden, bits, width=d) - half) for d in (width - 1, width, width + 1)]
    assert min(distances) == distances[1]
    assert distances[1] < 0.01 * half


def test_a_width_of_half_becomes_a_number(protocol: Protocol, path: Path) -> None:
    (cell,) = protocol.plan(["small/mtl/seed-0"])
    config = cell_config(protocol, cell, context(protocol, path))
    assert config.decision is not None
    assert config.decision["width"] == half_width(16, 300, 20)


def test_documents_are_split_by_content_into_disjoint_files(protocol: Protocol, path: Path) -> None:
    files = prepare(protocol, Store(path.parent / "store"), variables(path)).data
    texts = {split: set(Path(file).read_text().splitlines()) for split, file in files.items()}
    assert sum(map(len, texts.values())) == len(set.union(*texts.values())) == 50
    assert all(texts.values())
    shares = {"validation": 0.2, "test": 0.2}
    assert all(split_of(json.loads(line)["text"], shares) == split for split in texts for line in texts[split])


def test_preparation_is_done_once_and_again_for_other_data(protocol: Protocol, path: Path) -> None:
    store = Store(path.parent / "store")
    before = prepare(protocol, store, variables(path))
    written = {file: file.stat().st_mtime_ns for file in store.root.rglob("*.json*")}
    assert prepare(protocol, store, variables(path)) == before
    assert {file: file.stat().st_mtime_ns for file in store.root.rglob("*.json*")} == written
    with (path.parent / "text.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    assert prepare(protocol, store, variables(path)).folder != before.folder


def test_an_interrupted_preparation_leaves_nothing_that_looks_complete(
    protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(path.parent / "store")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("codehead.protocols.preparation._write_tokenizers", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(protocol, store, variables(path))
    assert not list(store.root.iterdir())
    assert Path(prepare(protocol, store, variables(path)).data["train"]).is_file()


def test_a_split_without_documents_is_refused(protocol: Protocol, path: Path) -> None:
    (path.parent / "text.jsonl").write_text('{"text": "alone"}\n')
    with pytest.raises(DataError, match="is left without a document"):
        prepare(protocol, Store(path.parent / "store"), variables(path))


class Recorder:
    """Takes the place of training: notes which cells are run, fails where it is told to."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.ran: list[str] = []

    def __call__(self, protocol: Protocol, cell: Any, context: Context, *_: Any) -> Result:
        self.ran.append(cell.key)
        if self.failing and self.failing in cell.key:
            raise RuntimeError("out of luck")
        config = runner.result_config(protocol, cell)
        data = file_records(cell_config(protocol, cell, context).data.sources)
        return Result(cell.key, config, {"test": {"top1": 0.5}}, {"data": data})


def run(
    protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder, **options: Any
) -> runner.Outcome:
    monkeypatch.setattr(runner, "run_cell", recorder)
    environment: Mapping[str, str] = variables(path)
    return run_protocol(protocol, path.parent / "out", variables=environment, **options)


def test_a_failing_cell_keeps_its_traceback_and_stops_no_other(
    protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = run(protocol, path, monkeypatch, Recorder(failing="small/mtl/seed-0"))
    assert outcome.failed == ["small/mtl/seed-0"]
    assert len(outcome.finished) == 7
    (failed,) = protocol.plan(["small/mtl/seed-0"])
    assert "RuntimeError: out of luck" in failure_path(path.parent / "out", failed.key).read_text()
    assert not result_path(path.parent / "out", failed).exists()


def test_a_restart_runs_only_what_is_missing(protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(protocol, path, monkeypatch, Recorder(failing="small/mtl/seed-0"))
    again = Recorder()
    outcome = run(protocol, path, monkeypatch, again)
    assert again.ran == outcome.finished == ["small/mtl/seed-0"]
    assert len(outcome.reused) == 7
    (retried,) = protocol.plan(["small/mtl/seed-0"])
    assert not failure_path(path.parent / "out", retried.key).exists()


def test_two_names_for_one_run_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(FILE.replace("  softmax: {}", "  softmax: {}\n  again: {}"))
    with pytest.raises(ConfigurationError, match="'small/softmax/seed-0' and 'small/again/seed-0' are the same run"):
        run(Protocol.from_yaml(path), path, monkeypatch, Recorder())


def test_results_of_another_configuration_are_not_reused(
    protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(protocol, path, monkeypatch, Recorder(), only=["small/softmax"])
    path.write_text(FILE.replace("learning_rate: 3e-4", "learning_rate: 3e-5"))
    with pytest.raises(ConfigurationError, match="measured with another configuration of 'small/softmax/seed-0'"):
        run(Protocol.from_yaml(path), path, monkeypatch, Recorder())


def test_results_of_other_data_are_not_reused(protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(protocol, path, monkeypatch, Recorder(), only=["small/softmax"])
    with (path.parent / "text.jsonl").open("a") as file:
        file.write("".join(f'{{"text": "{number} more"}}\n' for number in range(20)))
    with pytest.raises(ConfigurationError, match=r"small--softmax--seed-0.json' was measured on other data"):
        run(protocol, path, monkeypatch, Recorder())


def test_a_missing_test_file_is_told_before_anything_is_trained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = "split: {validation: 0.2, test: 0.2}\n"
    sources = 'validation: "${FOLDER}/text.jsonl", test: "${FOLDER}/absent.jsonl", block_size: 8'
    path.write_text(FILE.replace(split, "").replace("block_size: 8", sources))
    recorder = Recorder()
    with pytest.raises(DataError, match=r"absent\.jsonl' does not exist"):
        run(Protocol.from_yaml(path), path, monkeypatch, recorder)
    assert not recorder.ran


def test_the_data_of_a_shared_run_are_those_of_the_protocol(
    protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [{"name": "the test data of another protocol"}]
    record = {"provenance": {"wall_seconds": 1.0, "data": data}, "log_history": []}
    monkeypatch.setattr(cells, "train_once", lambda *_: record)
    monkeypatch.setattr(cells, "_measured_once", lambda *_: {"measured": {}})
    place = prepare(protocol, Store(path.parent / "store"), variables(path))
    result = cells.run_cell(protocol, protocol.plan()[0], place)
    assert [file["name"] for file in result.provenance["data"]] == ["train.jsonl", "validation.jsonl", "test.jsonl"]


@pytest.mark.parametrize("is_same", [True, False])
def test_an_unfinished_run_goes_on_unless_its_data_are_others(
    protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch, is_same: bool
) -> None:
    place = prepare(protocol, Store(path.parent / "store"), variables(path))
    config = cell_config(protocol, protocol.plan()[0], place)
    data = file_records(config.data.sources) if is_same else []
    RunFolder(config).write("running", {"provenance": {"data": data}})
    started: list[bool] = []
    monkeypatch.setattr(backbones, "train", lambda _, *, overwrite, **options: started.append(overwrite))
    backbones.train_once(config)
    assert started == [not is_same]


@pytest.mark.parametrize("name", names())
def test_protocols_of_the_catalogue_are_valid(name: str, tmp_path: Path) -> None:
    protocol = find(name)
    assert protocol.name == name
    place = locate(protocol, Store(tmp_path), {"CODEHEAD_DATA": str(tmp_path)})
    for cell in protocol.plan():
        cell_config(protocol, cell, place)


@pytest.mark.parametrize(
    "part", ["data: {train: other.jsonl}", "data: {text_field: story}", "data: {max_documents: 5}"]
)
def test_what_all_cells_share_cannot_be_set_for_one(path: Path, part: str) -> None:
    path.write_text(FILE.replace("softmax: {}", f"softmax: {{{part}}}"))
    with pytest.raises(ConfigurationError, match=r"softmax sets .*which all cells share"):
        Protocol.from_yaml(path)


def test_a_cell_runs_to_a_result_with_documents_under_another_field(path: Path, tmp_path: Path) -> None:
    """The real thing, once: prepare, train, evaluate, write."""
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"story": f"story number {i} of a long row of stories"}) + "\n" for i in range(50))
    )
    path.write_text(FILE.replace("block_size: 8", "block_size: 8, text_field: story"))
    protocol = Protocol.from_yaml(path)
    outcome = run_protocol(protocol, tmp_path / "out", only=["small/mtl/seed-0"], variables=variables(path))
    assert outcome.finished == ["small/mtl/seed-0"]
    (cell,) = protocol.plan(["small/mtl/seed-0"])
    result = Result.read(result_path(tmp_path / "out", cell))
    width = result.metrics["decision"]["width"]
    assert abs(20 * (16 * width + width) - 300 * 16 / 2) <= 20 * 17 / 2
    assert {entry["name"] for entry in result.provenance["data"]} == {"train.jsonl", "validation.jsonl", "test.jsonl"}
    assert 0 <= result.metrics["test"]["top1"] <= result.metrics["test"]["top5"] <= 1


def test_an_unknown_protocol_names_the_closest() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown protocol 'smal-1'; did you mean 'small-1'"):
        find("smal-1")
    with pytest.raises(ConfigurationError, match=r"'absent\.yaml' does not exist"):
        find("absent.yaml")


def test_the_small_protocols_start_from_one_backbone() -> None:
    small = [find(f"small-{number}") for number in (1, 2, 3)]
    assert all(protocol.backbones == small[0].backbones for protocol in small)
    assert all(protocol.base["training"] == small[0].base["training"] for protocol in small)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_published_protocols_have_the_configurations_of_the_paper(number: int) -> None:
    """Codeword lengths and widths of the paper's tables; those of small-* stand in the same order."""
    decisions = {
        1: {(None, None), (50, None), (None, 512), (50, 512)},
        2: {(None, 1024), (None, 512), (None, 128), (50, 1024), (50, 512), (50, 128)},
        3: {(None, 512), (25, 512), (50, 512), (75, 512), (100, 512)},
        4: {(50, 512), (75, 512), (100, 512)},
    }
    protocol = find(f"paper-{number}")
    found = [cell.config["decision"] for cell in protocol.plan() if cell.config.get("decision")]
    assert {(decision.get("bits"), decision.get("width")) for decision in found} == decisions[number]
    assert protocol.paper == number
    assert protocol.base["adapt"] == "lora"
    assert protocol.answers is not None and protocol.answers.encoder == "roberta-large"


def test_the_time_left_is_told_by_cells_alone() -> None:
    left = _Left(3)
    left.started -= 3600  # a backbone was trained
    assert left.restart() == ""
    left.started -= 60
    assert left.count("finished") == " (1 of 3, about 2 min left)"
    assert left.count("finished") == " (2 of 3, about 30 s left)"
    assert left.count("failed") == " (3 of 3)"
