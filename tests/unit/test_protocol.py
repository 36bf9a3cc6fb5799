"""Protocol files: what they may say, which cells they mean, what a restart runs again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from codehead import codes
from codehead.errors import CheckpointError, ConfigurationError, DataError
from codehead.heads import count_parameters
from codehead.lab.cli.protocol import _Left
from codehead.lab.protocols import cells, runner
from codehead.lab.protocols import resolve as resolving
from codehead.lab.protocols.cells import generation_dtype
from codehead.lab.protocols.protocol import Entry, Protocol, expand, find, merged
from codehead.lab.protocols.resolve import Cell, half_width, resolve
from codehead.lab.protocols.runner import fails, plan_steps, run_protocol
from codehead.lab.protocols.store import Context, Store, locate, prepare, split_of
from codehead.lab.result import Result, failure_path, result_path
from codehead.training import provenance
from codehead.training.config import RunConfig
from codehead.training.folder import RunFolder, locked, read_record
from codehead.training.provenance import file_record, file_records

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


def prepared(protocol: Protocol, path: Path) -> Context:
    place = context(protocol, path)
    prepare(protocol, place)
    return place


def resolved(protocol: Protocol, path: Path, entries: Sequence[Entry]) -> list[Cell]:
    return resolve(protocol, context(protocol, path), path.parent / "out", entries)


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
    ("only", "selected"),
    [
        ("seed-1", {"2.4M/a-5/seed-1", "2.4M/a-50/seed-1"}),
        ("a-5", {"2.4M/a-5/seed-1", "2.4M/a-5/seed-10"}),
        ("4M/a-5/", set()),
        ("M/a-5/seed-1", {"2.4M/a-5/seed-1"}),
        ("seed", {"2.4M/a-5/seed-1", "2.4M/a-5/seed-10", "2.4M/a-50/seed-1", "2.4M/a-50/seed-10"}),
    ],
)
def test_only_cuts_no_number(path: Path, only: str, selected: set[str]) -> None:
    values = {**yaml.safe_load(FILE), "seeds": [1, 10], "settings": {"2.4M": {}}, "reference": "a-5"}
    values["cells"] = {"a-5": {}, "a-50": {"training": {"max_steps": 3}}}
    path.write_text(yaml.safe_dump(values))
    protocol = Protocol.from_yaml(path)
    if selected:
        assert {cell.key for cell in protocol.plan([only])} == selected
    else:
        with pytest.raises(ConfigurationError, match="selects no cell"):
            protocol.plan([only])


def test_a_decision_of_the_setting_counts_where_a_cell_asks_for_it(path: Path) -> None:
    shared = FILE.replace("  small: {}\n", "  small: {decision: {code: minimal}}\n")
    path.write_text(shared.replace("softmax: {}", "softmax: {decision: null}\n  as-shared: {decision: {}}"))
    coded = {cell.key: cell.config.get("decision") for cell in Protocol.from_yaml(path).plan(["small", "seed-0"])}
    assert coded["small/softmax/seed-0"] is None
    assert coded["small/as-shared/seed-0"] == {"code": "minimal", "seed": 0}


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
        ("  softmax: {}", "  soft--max: {}\n  softmax: {}", "'soft--max' cannot name a file"),
        ("  small: {}", "  sm--all: {}", "'sm--all' cannot name a file"),
        (
            "  small: {}",
            "  small: {decision: {bits: 50}}",
            "'softmax' names no decision, but settings.small.dec.*; give",
        ),
        (
            "tokenizer:",
            "decision: {bits: 50}\n  tokenizer:",
            "'softmax' names no decision, but base.decision is .*; give",
        ),
        ("seeds:", "backbones: {opt: {decision: {bits: 9}}}\nseeds:", "backbones.opt.decision is {'bits': 9}, but"),
        ("name: tiny", "description: none", "missing name"),
        ("seeds: [0, 1]", "timing: {promts: 3}", "unknown key 'timing.promts'; did you mean 'prompts'"),
        ("seeds: [0, 1]", "answers: {prompts: 0}", "answers.prompts is 0"),
        ("  softmax: {}", "  softmax: {}\n  softmax: {}", "the key 'softmax' is given twice"),
        ("seeds: [0, 1]", "seeds: 3", "seeds is 3; give a list"),
        ("split: {validation: 0.2, test: 0.2}", "split: 0.1", "split is 0.1"),
        ("test: 0.2", "test: much", "below 0.5"),
        ("  softmax: {}", "  softmax: minimal", "cells.softmax is 'minimal'; it must be a block"),
        ("  small: {}", "  small: {data: text.jsonl}", "settings.small.data is 'text.jsonl'; it must be a block"),
        ("base:", "base:\n  decision: itq", "base.decision is 'itq'; it must be a block"),
        ("softmax: {}", "softmax: {decision: [itq]}", r"cells.softmax.decision is \['itq'\]; it must be a block"),
        ("learning_rate: 3e-4}", "learning_rate: 3e-4}\n  distil: 3", "base.distil is 3; it must be a block"),
        ("tokenizer:", "decision: {}\n  tokenizer:", "'softmax' names no decision, but base.decision is {}"),
        ("softmax: {}", "softmax: {model: {backbone: [opt]}}", r"the backbone \['opt'\], which is unknown"),
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


def test_a_baseline_may_have_the_name_of_older_files(path: Path) -> None:
    cells = "cells:\n  int4: {baseline: {bits: 4, group: 8}}\n"
    files = {key: FILE.replace("cells:\n", cells.replace("baseline", key)) for key in ("baseline", "peer")}
    found = []
    for text in files.values():
        path.write_text(text)
        found.append(Protocol.from_yaml(path).entries)
    assert found[0] == found[1] and found[0][0].baseline is not None
    path.write_text(FILE.replace("cells:\n", cells.replace("}}", "}, peer: {bits: 4}}")))
    with pytest.raises(ConfigurationError, match=r"cells\.int4 is a baseline of 'softmax'"):
        Protocol.from_yaml(path)


def test_an_empty_decision_is_the_shared_layer_of_the_seed(path: Path) -> None:
    path.write_text(FILE.replace("base:", "base:\n  decision: {}").replace("softmax: {}", "softmax: {decision: null}"))
    decisions = {entry.key: entry.config["decision"] for entry in Protocol.from_yaml(path).entries}
    assert decisions["small/softmax/seed-1"] is None
    path.write_text(FILE.replace("  mtl:", "  default: {decision: {}}\n  mtl:"))
    decisions = {entry.key: entry.config.get("decision") for entry in Protocol.from_yaml(path).entries}
    assert decisions["small/default/seed-1"] == {"seed": 1}


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
    (cell,) = resolved(protocol, path, protocol.plan(["small/mtl/seed-0"]))
    assert cell.run.decision is not None
    assert cell.run.decision.width == half_width(16, 300, 20)


def test_half_of_the_width_is_found_for_a_code_in_a_file(path: Path) -> None:
    codes.build("minrandom", 300, bits=24).save(path.parent / "code.safetensors")
    path.write_text(FILE.replace("code: minrandom, bits: 20", 'code: "${FOLDER}/code.safetensors"'))
    protocol = Protocol.from_yaml(path)
    (cell,) = resolved(protocol, path, protocol.plan(["small/mtl/seed-0"]))
    assert cell.run.decision is not None
    assert cell.run.decision.width == half_width(16, 300, 24)


def test_documents_are_split_by_content_into_disjoint_files(protocol: Protocol, path: Path) -> None:
    files = prepared(protocol, path).data
    texts = {split: set(Path(file).read_text().splitlines()) for split, file in files.items()}
    assert sum(map(len, texts.values())) == len(set.union(*texts.values())) == 50
    assert all(texts.values())
    shares = {"validation": 0.2, "test": 0.2}
    assert all(split_of(json.loads(line)["text"], shares) == split for split in texts for line in texts[split])


def test_preparation_is_done_once_and_again_for_other_data(protocol: Protocol, path: Path) -> None:
    before = prepared(protocol, path)
    root = before.store.root
    written = {file: file.stat().st_mtime_ns for file in root.rglob("*.json*")}
    assert prepared(protocol, path).folder == before.folder
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*.json*")} == written
    with (path.parent / "text.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    assert prepared(protocol, path).folder != before.folder


def test_an_interrupted_preparation_leaves_nothing_that_looks_complete(
    protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(path.parent / "store")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("codehead.lab.protocols.store._write_tokenizers", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared(protocol, path)
    assert not list(store.root.iterdir())
    assert Path(prepared(protocol, path).data["train"]).is_file()


def test_what_a_killed_preparation_left_is_removed(protocol: Protocol, path: Path) -> None:
    store = Store(path.parent / "store")
    (store.root / ".data-0123456789ab.tmp").mkdir(parents=True)
    (store.root / ".data-0123456789ab.tmp" / "train.jsonl").write_text("half a li")
    (store.root / ".data-fedcba987654.321.tmp").mkdir()
    place = prepared(protocol, path)
    assert list(store.root.iterdir()) == [place.folder]


def test_a_file_is_read_once_for_its_checksum_unless_it_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = path.parent / "text.jsonl", []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *rest, **named: read.append(self) or original(self, *rest, **named))
    provenance._sha256.cache_clear()
    before = [file_record(str(source)) for _ in range(3)]
    assert read == [source]
    source.write_text("something else\n")
    read.clear()
    assert file_record(str(source))["sha256"] != before[0]["sha256"]
    assert read == [source]


def test_a_split_without_documents_is_refused(protocol: Protocol, path: Path) -> None:
    (path.parent / "text.jsonl").write_text('{"text": "alone"}\n')
    with pytest.raises(DataError, match="is left without a document"):
        prepared(protocol, path)


class Recorder:
    """Takes the place of training: notes which cells are run, fails where it is told to."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.ran: list[str] = []

    def __call__(self, cell: Cell, *_: Any) -> Result:
        self.ran.append(cell.key)
        if self.failing and self.failing in cell.key:
            raise RuntimeError("out of luck")
        data = file_records(cell.run.data.sources)
        return Result(cell.key, cell.record, {"test": {"top1": 0.5}}, {"data": data})


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
    assert not result_path(path.parent / "out", failed.key).exists()


def test_a_restart_runs_only_what_is_missing(protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(protocol, path, monkeypatch, Recorder(failing="small/mtl/seed-0"))
    again = Recorder()
    outcome = run(protocol, path, monkeypatch, again)
    assert again.ran == outcome.finished == ["small/mtl/seed-0"]
    assert len(outcome.reused) == 7
    (retried,) = protocol.plan(["small/mtl/seed-0"])
    assert not failure_path(path.parent / "out", retried.key).exists()


def test_a_file_is_worked_out_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worked_out, resolved = [], []
    entries, one = Protocol._entries, resolving._resolved
    monkeypatch.setattr(Protocol, "_entries", lambda self: worked_out.append(self) or entries(self))
    monkeypatch.setattr(resolving, "_resolved", lambda *rest: resolved.append(rest[1].key) or one(*rest))
    protocol = Protocol.from_yaml(path)
    run(protocol, path, monkeypatch, Recorder(), only=["seed-0"])
    assert len(worked_out) == 1
    keys = [entry.key for entry in protocol.plan(["seed-0"])]
    assert resolved == 2 * keys, "once before the data are prepared, and once when they are there"
    resolved.clear()
    run(protocol, path, monkeypatch, Recorder(), only=["seed-0"])
    assert resolved == keys


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


ABSENT = {"data": {"train": "absent.jsonl"}}
BACKBONE = {"model": {"model_type": "gpt2"}, "tokenizer": {"train": "bpe", "vocab_size": 300}, **ABSENT}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"base": ABSENT}, DataError, r"'absent\.jsonl' does not exist"),
        ({"backbones": {"opt": BACKBONE}, "base": {"model": {"backbone": "opt"}}}, DataError, "absent"),
        ({"answers": {"encoder": ".", "encoder_layers": 1}}, ConfigurationError, r"encoder .* has no config\.json"),
        ({"base": {"training": {"learning_rte": 1.0}}}, ConfigurationError, "training.learning_rte"),
    ],
)
def test_the_plan_refuses_what_a_run_would_refuse(
    path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    values = merged(yaml.safe_load(FILE), changes)
    path.write_text(yaml.safe_dump(values))
    monkeypatch.chdir(path.parent)
    protocol, recorder, out = Protocol.from_yaml(path), Recorder(), path.parent / "out"
    with pytest.raises(error, match=message):
        plan_steps(protocol, out, Store(out / "store"), (), variables(path))
    with pytest.raises(error, match=message):
        run(protocol, path, monkeypatch, recorder)
    assert not recorder.ran
    assert not out.exists()


def test_the_plan_refuses_results_over_other_data(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = 'validation: "${FOLDER}/text.jsonl", test: "${FOLDER}/test.jsonl", block_size: 8'
    text = FILE.replace("split: {validation: 0.2, test: 0.2}\n", "").replace("block_size: 8", sources)
    path.write_text(text)
    (path.parent / "test.jsonl").write_text('{"text": "unseen"}\n')
    protocol, out = Protocol.from_yaml(path), path.parent / "out"
    run(protocol, path, monkeypatch, Recorder())
    steps = plan_steps(protocol, out, Store(out / "store"), (), variables(path))
    assert all(step.is_done for step in steps)
    (path.parent / "test.jsonl").write_text('{"text": "unseen, but others"}\n')
    with pytest.raises(ConfigurationError, match="was measured on other data"):
        plan_steps(protocol, out, Store(out / "store"), (), variables(path))


def test_a_head_that_is_to_be_compressed_is_not_done_and_takes_no_training(path: Path) -> None:
    cut = "seeds: [0]\n".join(FILE.split("seeds: [0, 1]\n"))
    path.write_text(cut.replace("cells:\n", "cells:\n  int4: {baseline: {bits: 4, group: 8}}\n"))
    out = path.parent / "out"
    steps = plan_steps(Protocol.from_yaml(path), out, Store(out / "store"), ("int4", "mtl"), variables(path))
    told = {step.key.split("/")[-2]: (step.is_done, step.trains, step.seconds(1e9)) for step in steps}
    assert told["int4"] == (False, False, 0.0)
    assert told["mtl"][:2] == (False, True) and told["mtl"][2] > 0


HOLD = """
import sys, time
from pathlib import Path
from codehead.training.folder import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_one_command_works_in_a_store_at_a_time_and_a_killed_one_makes_room(
    protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, recorder = path.parent / "out" / "store", Recorder()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(store)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ConfigurationError, match=r"another command is using '.*store'; wait .* another --out"):
            run(protocol, path, monkeypatch, recorder)
        other.kill()
    assert not recorder.ran
    assert len(run(protocol, path, monkeypatch, recorder).finished) == 8


def test_a_failed_command_gives_its_store_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(FILE.replace("test: 0.2", "test: 0.0001"))
    with pytest.raises(DataError, match="left without a document"):
        run(Protocol.from_yaml(path), path, monkeypatch, Recorder())
    with locked(path.parent / "out" / "store"):
        pass


def test_backbones_are_trained_beside_each_other_and_fail_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load(FILE)
    backbone = {"model": values["base"].pop("model"), "tokenizer": values["base"].pop("tokenizer")}
    backbone["data"] = {"train": "${FOLDER}/text.jsonl", "block_size": 8}
    names = ("a", "b", "c")
    values |= {
        "backbones": {name: {**backbone, "seed": number} for number, name in enumerate(names)},
        "settings": {name: {"model": {"backbone": name}} for name in names},
        "cells": {"softmax": {}},
        "seeds": [0],
    }
    path.write_text(yaml.safe_dump(values))
    batches: list[tuple[list[str], int]] = []

    def run_tasks(tasks: dict[str, Any], out: Path, jobs: int, callbacks: Any) -> Iterator[tuple[str, bool]]:
        batches.append((list(tasks), jobs))
        for key, work in reversed(tasks.items()):  # as processes may
            yield key, fails(partial(work, ()), failure_path(out, key))

    def train(run: RunConfig, callbacks: Any) -> None:
        if run.seed == names.index("b"):
            raise RuntimeError("out of luck")
        RunFolder(run).write("finished", {"provenance": {"data": []}})

    monkeypatch.setattr(runner, "run_tasks", run_tasks)
    monkeypatch.setattr(runner, "train_once", train)
    outcome = run(Protocol.from_yaml(path), path, monkeypatch, Recorder(), jobs=2)
    assert batches == [
        (["backbone a", "backbone b", "backbone c"], 2),
        (["a/softmax/seed-0", "b/softmax/seed-0", "c/softmax/seed-0"], 2),
        ([], 2),  # no baselines
    ]
    assert outcome.failed == ["backbone b", "b/softmax/seed-0"]
    assert sorted(outcome.finished) == ["a/softmax/seed-0", "c/softmax/seed-0"]
    assert "out of luck" in failure_path(path.parent / "out", "backbone b").read_text()


def test_a_damaged_record_names_a_remedy_that_every_command_has(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json' is damaged \(.*\); remove its folder and start again"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("device", "changes", "dtype"),
    [
        ("cuda", {"training": {"bf16": True}}, "bfloat16"),
        ("cuda", {"training": {"fp16": True}}, "float16"),
        ("cuda", {}, "float32"),
        ("cpu", {"training": {"bf16": True, "use_cpu": True}}, "float32"),
        ("cpu", {"dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_models_are_timed_in_the_arithmetic_of_their_accelerator(
    device: str, changes: dict[str, Any], dtype: str
) -> None:
    run = RunConfig.from_dict({"model": "a-model", "data": {"train": "a.txt"}, "output_dir": "out", **changes})
    assert generation_dtype(run, torch.device(device)) == dtype


def test_the_data_of_a_shared_run_are_those_of_the_protocol(
    protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [{"name": "the test data of another protocol"}]
    record = {"provenance": {"wall_seconds": 1.0, "data": data}, "log_history": []}
    monkeypatch.setattr(cells, "train_once", lambda *_: record)
    monkeypatch.setattr(cells, "_measured_once", lambda *_: {"measured": {}})
    prepared(protocol, path)
    (cell,) = resolved(protocol, path, protocol.entries[:1])
    result = cells.run_cell(cell)
    assert [file["name"] for file in result.provenance["data"]] == ["train.jsonl", "validation.jsonl", "test.jsonl"]


@pytest.mark.parametrize("is_same", [True, False])
def test_an_unfinished_run_goes_on_unless_its_data_are_others(
    protocol: Protocol, path: Path, monkeypatch: pytest.MonkeyPatch, is_same: bool
) -> None:
    prepared(protocol, path)
    config = resolved(protocol, path, protocol.entries[:1])[0].run
    data = file_records(config.data.sources) if is_same else []
    RunFolder(config).write("running", {"provenance": {"data": data}})
    started: list[bool] = []
    monkeypatch.setattr(cells, "train", lambda _, *, overwrite, **options: started.append(overwrite))
    cells.train_once(config)
    assert started == [not is_same]


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
    result = Result.read(result_path(tmp_path / "out", cell.key))
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
    left.ended -= 3600  # a backbone was trained
    assert left.restart() == ""
    left.ended -= 60
    assert left.count("finished") == " (1 of 3, about 2 min left)"
    left.ended -= 20
    assert left.count("finished") == " (2 of 3, about 40 s left)"
    assert left.count("failed") == " (3 of 3)"
