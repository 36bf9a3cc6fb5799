"""Protocols from end to end, on backbones of a few thousand parameters and an encoder made on the spot."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers.processors import TemplateProcessing

from codehead.errors import CodeheadError, ConfigurationError
from codehead.lab.protocols.protocol import Protocol, names
from codehead.lab.protocols.resolve import check_runs, resolve
from codehead.lab.protocols.runner import plan_steps, run_protocol
from codehead.lab.protocols.store import Store, locate, prepare
from codehead.lab.reports.drawing import png
from codehead.lab.reports.evidence import read_evidence
from codehead.lab.reports.pictures import frontier
from codehead.lab.reports.summary import summarise
from codehead.lab.reports.tables import decoder_tables, markdown
from codehead.lab.result import Result, failure_path
from codehead.training.likely_tokens import imitate
from codehead.training.tokenizer import train_bpe

Command = Callable[..., tuple[int, str, str]]
ARCHITECTURE = {
    "model_type": "opt",
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "ffn_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
TEXTS = [f"a story about the number {i}, which is a long one" for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, records and an encoder with random weights."""
    from transformers import BertConfig, BertModel

    here = tmp_path_factory.mktemp("protocol")
    (here / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    records = [{"prompt": f"Which number is {i}?", "completion": f" It is {i}, a number."} for i in range(60)]
    (here / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    around = [("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)]
    bracketed = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    tokenizer.backend_tokenizer.post_processor = bracketed
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **shape)).save_pretrained(here / "encoder")
    tokenizer.save_pretrained(here / "encoder")
    return here


def described(**changes: Any) -> dict[str, Any]:
    values = {
        "name": "tiny",
        "reference": "softmax",
        "seeds": [0, 1],
        "split": {"validation": 0.2, "test": 0.2},
        "batch_size": 4,
        "backbones": {
            "opt": {
                "model": ARCHITECTURE,
                "tokenizer": {"train": "bpe", "vocab_size": 300},
                "data": {"train": "${FOLDER}/text.jsonl", "block_size": 16},
                "training": {"max_steps": 2, "use_cpu": True},
            }
        },
        "base": {
            "model": {"backbone": "opt"},
            "data": {"train": "${FOLDER}/records.jsonl", "block_size": 64},
            "training": {"max_steps": 2, "logging_steps": 1, "use_cpu": True},
        },
        "cells": {
            "softmax": {},
            "mtl": {"decision": {"code": "minrandom", "bits": 12, "head": "mtl", "width": "half"}},
        },
        "answers": {"prompts": 3, "new_tokens": 4, "encoder": "${FOLDER}/encoder", "encoder_layers": 1, "samples": 2},
        "timing": {"prompts": 3, "new_tokens": 2, "batch_size": 2, "repeats": 2},
    }
    return {**values, **changes}


def protocol(folder: Path, tmp_path: Path, **changes: Any) -> Protocol:
    values = described(**changes)
    values["answers"] = values["answers"] and {**values["answers"], "encoder": str(folder / "encoder")}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return Protocol.from_yaml(path)


def variables(folder: Path) -> dict[str, str]:
    return {"FOLDER": str(folder)}


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    outcome = run_protocol(protocol(folder, out), out, variables=variables(folder))
    assert not outcome.failed, (out / "failures").rglob("*")
    return out


def results(out: Path) -> dict[str, Result]:
    found = [Result.read(path) for path in sorted((out / "results").glob("*.json"))]
    return {result.name: result for result in found}


def test_every_cell_has_scored_answers_and_the_same_prompts(finished: Path) -> None:
    found = results(finished)
    assert list(found) == [f"tiny/{cell}/seed-{seed}" for cell in ("mtl", "softmax") for seed in (0, 1)]
    answers = [result.metrics["answers"] for result in found.values()]
    assert all(-1 <= one["bertscore"][key] <= 1 for one in answers for key in ("precision", "recall", "f1"))
    assert len({one["bertscore"]["encoder"]["sha256"] for one in answers}) == 1
    assert len({json.dumps([sample["prompt"] for sample in one["samples"]]) for one in answers}) == 1
    assert all(len(one["samples"]) == 2 and one["prompts"] == 3 for one in answers)


def test_every_cell_starts_from_one_backbone(finished: Path) -> None:
    weights = {
        file["sha256"]
        for result in results(finished).values()
        for file in result.provenance["backbone"]
        if file["name"] == "model.safetensors"
    }
    assert len(weights) == 1
    records = [json.loads(path.read_text()) for path in (finished / "store").glob("*/run.json")]
    (backbone,) = [record for record in records if isinstance(record["config"]["model"], dict)]
    assert len(records) == 1 + 4
    trained = [result.provenance["backbone_training"] for result in results(finished).values()]
    assert trained == [backbone["provenance"]] * 4
    assert [file["name"] for file in trained[0]["data"]] == ["text.jsonl"]


def test_the_times_are_those_of_all_cells_of_one_seed(finished: Path) -> None:
    timing = Result.read(finished / "results" / "timing" / "all.json")
    assert sorted(timing.metrics["cells"]) == ["mtl", "softmax"]
    for cell in timing.metrics["cells"].values():
        assert len(cell["answer_repeats"]) == len(cell["tokens_per_second_repeats"]) == 2
        assert min(cell["answer_repeats"]) > 0
        assert cell["dtype"] == "float32"
    assert timing.config["seed"] == 0


def test_a_second_start_trains_and_times_nothing(finished: Path, folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    outcome = run_protocol(protocol(folder, tmp_path), finished, variables=variables(folder))
    assert len(outcome.reused) == 4
    assert not outcome.finished
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_protocols_that_share_a_store_share_runs(finished: Path, folder: Path, tmp_path: Path) -> None:
    trained = {path: path.stat().st_mtime_ns for path in (finished / "store").glob("*/run.json")}
    cells = {"softmax": {}, "linear": {"decision": {"code": "minimal"}}}
    other = protocol(folder, tmp_path, name="other", cells=cells, seeds=[0], timing=None)
    run_protocol(other, tmp_path / "other", store=finished / "store", variables=variables(folder))
    now = {path: path.stat().st_mtime_ns for path in (finished / "store").glob("*/run.json")}
    assert trained.items() <= now.items()
    assert len(now) == len(trained) + 1
    assert (
        results(tmp_path / "other")["other/softmax/seed-0"].metrics["test"]
        == (results(finished)["tiny/softmax/seed-0"].metrics["test"])
    )
    for path in set(now) - set(trained):
        path.unlink()  # leaves the store as the other tests know it


def test_runs_that_another_protocol_trained_are_done(finished: Path, folder: Path, tmp_path: Path) -> None:
    other = protocol(folder, tmp_path, name="other")
    steps = plan_steps(other, tmp_path / "other", Store(finished / "store"), (), variables(folder))
    assert [step.is_done for step in steps] == [True] * 5


def test_new_tokens_that_leave_no_room_for_a_prompt_are_told(finished: Path, folder: Path, tmp_path: Path) -> None:
    long = protocol(folder, tmp_path, name="long", seeds=[0], timing={"new_tokens": 128})
    outcome = run_protocol(long, tmp_path / "long", store=finished / "store", variables=variables(folder))
    assert outcome.failed == ["timing"]
    assert "lower timing.new_tokens" in failure_path(tmp_path / "long", "timing").read_text()


def test_a_backbone_that_fails_takes_only_its_own_cells_with_it(folder: Path, tmp_path: Path) -> None:
    broken = {**described()["backbones"]["opt"], "data": {"train": "${FOLDER}/text.jsonl", "block_size": 4096}}
    two = protocol(
        folder,
        tmp_path,
        backbones={**described()["backbones"], "broken": broken},
        settings={"sound": {}, "broken": {"model": {"backbone": "broken"}}},
        seeds=[0],
        answers=None,
        timing=None,
    )
    outcome = run_protocol(two, tmp_path / "out", variables=variables(folder))
    assert outcome.finished == ["sound/softmax/seed-0", "sound/mtl/seed-0"]
    assert outcome.failed == ["backbone broken", "broken/softmax/seed-0", "broken/mtl/seed-0"]
    assert "block_size" in failure_path(tmp_path / "out", "backbone broken").read_text()
    assert "starts from the backbone 'broken'" in failure_path(tmp_path / "out", "broken/mtl/seed-0").read_text()


def test_an_encoder_without_weights_is_told_before_anything_is_trained(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    answers = {**described()["answers"], "encoder": str(tmp_path / "encoder")}
    values = {**described(), "answers": answers}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(CodeheadError, match="encoder"):
        run_protocol(Protocol.from_yaml(tmp_path / "tiny.yaml"), tmp_path / "out", variables=variables(folder))
    assert not (tmp_path / "out").exists()


def test_a_missing_data_file_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CodeheadError, match=r"records\.jsonl' does not exist"):
        run_protocol(protocol(folder, tmp_path), tmp_path / "out", variables={"FOLDER": str(tmp_path)})


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(finished: Path, folder: Path, tmp_path: Path) -> None:
    alone = protocol(folder, tmp_path, seeds=[0], timing=None)
    run_protocol(alone, tmp_path / "out", jobs=2, variables=variables(folder))
    together, apart = results(tmp_path / "out"), results(finished)
    assert sorted(together) == ["tiny/mtl/seed-0", "tiny/softmax/seed-0"]
    for name, result in together.items():
        perplexity = apart[name].metrics["test"]["perplexity"]
        assert result.metrics["test"]["perplexity"] == pytest.approx(perplexity, rel=1e-4)


@pytest.mark.slow
def test_backbones_are_trained_in_processes_each_once(folder: Path, tmp_path: Path) -> None:
    opt = described()["backbones"]["opt"]
    broken = {**opt, "data": {**opt["data"], "block_size": 4096}}
    three = protocol(
        folder,
        tmp_path,
        backbones={"one": opt, "two": {**opt, "seed": 1}, "broken": broken},
        settings={name: {"model": {"backbone": name}} for name in ("one", "two", "broken")},
        seeds=[0],
        answers=None,
        timing=None,
    )
    told: list[tuple[str, str]] = []
    here: list[str] = []
    outcome = run_protocol(
        three,
        tmp_path / "out",
        jobs=2,
        variables=variables(folder),
        report=lambda *words: told.append(words),
        callbacks=lambda key: here.append(key) or [],
    )
    backbones = {"backbone one": "finished", "backbone two": "finished", "backbone broken": "failed"}
    assert dict(told[:3]) == backbones
    assert sorted(outcome.finished) == [
        "one/mtl/seed-0", "one/softmax/seed-0", "two/mtl/seed-0", "two/softmax/seed-0",
    ]  # fmt: skip
    assert sorted(outcome.failed) == ["backbone broken", "broken/mtl/seed-0", "broken/softmax/seed-0"]
    assert not here, "callbacks are for work in this process"
    assert len(list((tmp_path / "out" / "store").glob("softmax-seed-?-*/run.json"))) == 2 + 2


IDLE = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import sleep
import os
from codehead.lab.protocols.runner import start
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start, initargs=(1,))
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(sleep, 600)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the process in /proc")
def test_a_killed_command_takes_its_processes_with_it(tmp_path: Path) -> None:
    (tmp_path / "idle.py").write_text(IDLE)
    with subprocess.Popen([sys.executable, tmp_path / "idle.py"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = parent.stdout.readline().strip()
        assert is_running(child)
        parent.kill()
    deadline = time.monotonic() + 60
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(child)


def is_running(process: str) -> bool:
    try:
        return bool(Path("/proc", process, "cmdline").read_bytes())  # empty once it has ended
    except OSError:
        return False


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "codehead", "protocol", *map(str, words)]


def test_the_plan_tells_time_and_memory_and_writes_nothing(
    folder: Path, tmp_path: Path, codehead: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol(folder, tmp_path)
    monkeypatch.setenv("FOLDER", str(folder))
    status, told, errors = codehead("protocol", "run", tmp_path / "tiny.yaml", "--out", tmp_path / "out", "--dry-run")
    assert status == 0, errors
    assert "backbone opt" in told
    assert "5 of 5 runs are left" in told
    assert "GiB" in told
    assert not (tmp_path / "out").exists()


def test_the_report_names_an_edited_result_and_leaves_it_out(finished: Path, tmp_path: Path, codehead: Command) -> None:
    copied = tmp_path / "tiny"
    shutil.copytree(finished / "results", copied / "results")
    edited = copied / "results" / "mtl--seed-1.json"
    edited.write_text(edited.read_text().replace('"top1": 0', '"top1": 1', 1))
    status, told, errors = codehead("protocol", "report", copied)
    assert status == 1, errors
    assert "Left out: mtl--seed-1.json" in told
    assert "does not match its checksum" in told
    page = (copied / "report" / "report.html").read_text()
    assert "mtl--seed-1.json" in page
    assert "http" not in re.sub(r'<a href="http[^"]*"|xmlns="[^"]*"', "", page)


def test_the_list_shows_every_protocol_of_the_catalogue(codehead: Command) -> None:
    _, told, _ = codehead("protocol", "list")
    assert [line.split()[0] for line in told.splitlines() if line[1:6].strip()][2:] == names()


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_a_cell_goes_on_without_loss(folder: Path, tmp_path: Path) -> None:
    training = {"max_steps": 60, "logging_steps": 1, "save_steps": 5, "use_cpu": True}
    base = {**described()["base"], "training": training}
    one = protocol(folder, tmp_path, base=base, seeds=[0], cells={"softmax": {}}, answers=None, timing=None)
    store = Store(tmp_path / "runs" / "store")
    prepare(one, locate(one, store, variables(folder)))
    environment = {**os.environ, **variables(folder), "HF_HUB_OFFLINE": "1"}
    words = command("run", tmp_path / "tiny.yaml", "--out", tmp_path / "runs")
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    pattern = "softmax-seed-0-*/checkpoints/checkpoint-1[05]/trainer_state.json"
    while not list(store.root.glob(pattern)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "runs" / "tiny" / "results").exists(), "it finished before it could be killed"
    assert subprocess.run(words, env=environment, check=False, stderr=subprocess.DEVNULL).returncode == 0
    run_protocol(one, tmp_path / "whole", variables=variables(folder))
    (resumed,) = results(tmp_path / "runs" / "tiny").values()
    (whole,) = results(tmp_path / "whole").values()
    assert resumed.metrics["test"] == whole.metrics["test"]
    losses = [[entry["loss"] for entry in result.metrics["history"]] for result in (resumed, whole)]
    assert losses[0] == losses[1]


def test_a_result_of_another_configuration_is_refused(finished: Path, folder: Path, tmp_path: Path) -> None:
    other = protocol(folder, tmp_path, answers={**described()["answers"], "prompts": 2})
    with pytest.raises(ConfigurationError, match="measured with another configuration"):
        run_protocol(other, finished, variables=variables(folder))


LEARNED = "Learned ITQ ECOC (12, 0) + 64 extra bits for 30 tokens + bias, int8"
BIASED = {"code": "itq", "bits": 12, "loss": "codeword", "token_bias": True}
BASELINES = {
    "softmax": {},
    "int4": {"baseline": {"bits": 4, "group": 8}},
    "int2-corrected": {"baseline": {"bits": 2, "group": 8, "corrected": True}},
    "trimmed": {"baseline": {"keep": 50}},
    "trimmed-int8": {"baseline": {"keep": 50, "bits": 8, "group": 16}},
    "converted": {
        "baseline": {"convert": {"decision": {**BIASED, "refined": 30}, "distil": {"steps": 3}, "int8": True}}
    },
    "shorter": {"baseline": {"convert": {"decision": {**BIASED, "refined": 30}, "distil": {"steps": 3}, "int4": True}}},
    "joint": {"baseline": {"convert": {"decision": BIASED, "distil": {"steps": 3, "trunk_steps": 2}, "int8": True}}},
    "coded": {"decision": BIASED, "distil": {"steps": 3}},
}


def test_a_conversion_that_was_stopped_goes_on_where_it_was(
    finished: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, cells = tmp_path / "store", {name: BASELINES[name] for name in ("softmax", "converted")}
    shutil.copytree(finished / "store", store)
    steps: list[int] = []

    def interrupted(*args: Any) -> float:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return imitate(*args)

    monkeypatch.setattr("codehead.training.distil.imitate", interrupted)
    run = protocol(folder, tmp_path, name="stopped", cells=cells, seeds=[0], timing=None)
    with pytest.raises(KeyboardInterrupt):
        run_protocol(run, tmp_path, store=store, variables=variables(folder), only=["converted"])
    (kept,) = store.glob("*/measured-*/distillation.safetensors")
    assert len(steps) == 3  # of which two were whole
    run_protocol(run, tmp_path, store=store, variables=variables(folder), only=["converted"])
    assert len(steps) == 4
    assert not kept.parent.exists()


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ({"bits": 4, "group": 12}, "baseline/seed-0: baseline.group is 12, which does not divide the hidden size 16"),
        ({"keep": 301}, "baseline/seed-0: baseline.keep is 301, but the model has 300 tokens"),
    ],
)
def test_baselines_that_do_not_fit_the_model_are_told_before_anything_is_trained(
    folder: Path, tmp_path: Path, baseline: dict[str, Any], message: str
) -> None:
    run = protocol(
        folder, tmp_path, name="baselines", cells={"softmax": {}, "baseline": {"baseline": baseline}}, seeds=[0]
    )
    with pytest.raises(ConfigurationError, match=message):
        run_protocol(run, tmp_path / "out", variables=variables(folder))
    assert not list((tmp_path / "out").glob("**/run.json"))


def test_a_plan_with_baselines_needs_no_hub_and_mistakes_are_told_as_before(folder: Path, tmp_path: Path) -> None:
    base, cells = described()["base"], {"softmax": {}, "baseline": {"baseline": {"bits": 4, "group": 8}}}

    def check(model: Any) -> None:
        run = protocol(folder, tmp_path, cells=cells, base={**base, "model": model}, backbones={}, answers=None)
        context = locate(run, Store(tmp_path / "store"), variables(folder))
        check_runs(run, resolve(run, context, tmp_path, run.entries), context)

    check("somebody/nothing")
    with pytest.raises(ConfigurationError, match="tokenizer is missing"):
        check(ARCHITECTURE)


def test_baselines_are_the_run_of_the_reference_with_a_compressed_head(
    finished: Path, folder: Path, tmp_path: Path
) -> None:
    run = protocol(folder, tmp_path, name="baselines", cells=BASELINES, seeds=[0], timing=None)
    only_baselines = run_protocol(
        run,
        tmp_path,
        store=finished / "store",
        variables=variables(folder),
        only=["int", "trim", "converted", "shorter"],
    )
    assert len(only_baselines.finished) == 7  # "joint" holds "int" too
    outcome = run_protocol(run, tmp_path, store=finished / "store", variables=variables(folder))
    assert sorted(outcome.finished) == ["coded/seed-0", "softmax/seed-0"] and not outcome.failed
    found = {name.split("/")[1]: result.metrics for name, result in results(tmp_path).items()}
    whole = found["softmax"]["size"]["bytes_in_bf16"]
    assert found["int4"]["size"]["bytes_in_bf16"] == whole // 4 + 4 * 300 * 2
    assert found["trimmed"]["size"]["bytes_in_bf16"] == 2 * 50 * 16
    assert found["trimmed-int8"]["size"]["bytes_in_bf16"] == 50 * 16 + 50 * 4
    assert found["trimmed-int8"]["test"]["top1"] == pytest.approx(found["trimmed"]["test"]["top1"], abs=0.02)
    assert found["coded"]["size"]["bytes_in_bf16"] == 2 * (12 * 16 + 300) + 2 * 300
    assert found["trimmed"]["test"]["perplexity"] is None  # some tokens of the test split have no probability
    assert 0 < abs(found["int4"]["test"]["perplexity"] / found["softmax"]["test"]["perplexity"] - 1) < 0.01
    assert found["int4"]["history"] == found["softmax"]["history"] == found["converted"]["history"]
    assert found["converted"]["decision"]["refined"] == 30 and found["converted"]["decision"]["rounded"]
    rows_and_codewords = (12 + 64) * (16 + 2) + 2 * 300 + 8 * 30
    assert found["converted"]["size"]["bytes_in_bf16"] == rows_and_codewords + (300 + 2) + 38  # bias, marks
    assert found["shorter"]["size"]["bytes_in_bf16"] == rows_and_codewords + (300 + 2) + 38 - (12 + 64) * 16 // 2
    rows = {row.label: row for row in summarise(read_evidence(tmp_path / "results"))}
    trimmed = {"Trimmed to 50 tokens", "Trimmed to 50 tokens, int8"}
    assert {"int4, rounded", "int2, error-corrected", *trimmed, LEARNED} < set(rows)
    assert rows[LEARNED].family == rows[LEARNED.replace("int8", "int4")].family == "converted"
    assert rows["Learned ITQ ECOC (12, 0) + bias, int8, backbone too"].family == "joint"
    assert rows["int4, rounded"].byte_share == pytest.approx(0.25 + 4 * 300 * 2 / whole)
    (picture,) = frontier(list(rows.values()))
    assert "Perplexity" in [panel.title for panel in picture.panels]
    assert len(png(picture)) > 10_000


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"int4": {"baseline": {"bits": 0, "keep": 3}}}, "baseline.bits is 0"),
        ({"int4": {"baseline": {}}}, "or convert; give one of these"),
        ({"code": {"baseline": {"convert": {}}}}, "baseline.convert has no decision"),
        ({"code": {"baseline": {"convert": {"decision": {"code": "itqq"}}}}}, "unknown design 'itqq'"),
        (
            {"code": {"baseline": {"convert": {"decision": {"code": "itq"}, "int4": 1}}}},
            "baseline.convert.int4 is 1; give true",
        ),
        ({"code": {"baseline": {"convert": {"decisoin": {}}}}}, "unknown key 'baseline.convert.decisoin'"),
        ({"code": {"baseline": {"bits": 4, "convert": {"decision": {"code": "itq"}}}}}, "nothing to compress"),
        ({"int4": {"baseline": {"bitz": 4}}}, r"unknown key 'cells.int4.baseline.bitz'; did you mean 'bits'"),
        ({"int4": {"baseline": {"bits": 4}, "seed": 1}}, "cells.int4 is a baseline of 'softmax'"),
        ({"softmax": {"baseline": {"bits": 4}}}, "cells.softmax is a baseline of 'softmax'"),
        ({"int4": {"baseline": {"keep": 0}}}, "baseline.keep is 0"),
    ],
)
def test_impossible_baselines_are_named(folder: Path, tmp_path: Path, cells: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        protocol(folder, tmp_path, cells={"softmax": {}, **cells})


def test_codes_are_read_by_several_decoders(folder: Path, tmp_path: Path) -> None:
    """Codes that look at the old head, codewords dealt out anew, a code that grows; what cannot be decoded is left."""
    cells = {
        "softmax": {},
        "far": {"decision": {"code": "minrandom", "bits": 12, "assignment": "similar_far"}},
        "often": {"decision": {"code": "minrandom", "bits": 12, "assignment": "frequency"}},
        "grown": {"decision": {"code": "ecoc_one", "bits": 12, "code_params": {"rounds": 2}}},
        "fitted": {"decision": {"code": "minrandom", "bits": 12}},
        "biased": {"decision": {"code": "itq", "bits": 12, "loss": "codeword", "token_bias": True}},
    }
    decoders = ["likelihood", "hamming", "loss_weighted_linear"]
    changes = {"cells": cells, "seeds": [0], "answers": None, "timing": None, "decoders": decoders}
    run_protocol(protocol(folder, tmp_path, **changes), tmp_path / "out", variables=variables(folder))
    results = {path.name.split("--")[0]: Result.read(path) for path in (tmp_path / "out/results").glob("*.json")}
    assert set(results) == set(cells)
    for name in ("far", "often", "grown", "fitted"):
        found = results[name].metrics["decoders"]
        assert list(found) == decoders
        assert found["likelihood"]["top1"] == results[name].metrics["test"]["top1"]
        assert found["likelihood"]["top5"] == results[name].metrics["test"]["top5"]
    assert all("decoders" not in results[name].metrics for name in ("softmax", "biased"))
    tables = [markdown(table) for table in decoder_tables(summarise(read_evidence(tmp_path / "out/results")))]
    assert len(tables) == 1 and "loss weighted linear" in tables[0] and tables[0].count("\n") == 2 + 4


def test_an_unknown_decoder_is_told_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CodeheadError, match="unknown decoder 'haming'"):
        protocol(folder, tmp_path, decoders=["haming"])


def test_heads_of_few_bytes_end_as_integers(folder: Path, tmp_path: Path) -> None:
    """A code with longer codewords, and a head without one: rounded in the end, smaller, and told apart."""
    longer = {
        "code": "itq",
        "bits": 16,
        "loss": "codeword",
        "extra_bit_tokens": 40,
        "extra_bits": 8,
        "token_bias": True,
    }
    low_rank = {"code": "one_vs_all", "head": "low_rank", "head_params": {"rank": 2}, "loss": "codeword"}
    adaptive = {"code": "one_vs_all", "head": "adaptive", "head_params": {"cutoffs": [20]}, "loss": "codeword"}
    distil = {"steps": 2, "tokens": 100}
    cells = {
        "softmax": {},
        "longer": {"decision": longer, "distil": distil},
        "longer-int8": {"decision": longer, "distil": distil, "int8": True},
        "low-rank-int8": {"decision": low_rank, "distil": distil, "int8": True},
        "adaptive": {"decision": adaptive, "distil": distil},
    }
    changes = {"cells": cells, "seeds": [0], "answers": None, "timing": None}
    run_protocol(protocol(folder, tmp_path, **changes), tmp_path / "out", variables=variables(folder))
    rows = {row.cell: row for row in summarise(read_evidence(tmp_path / "out/results"))}
    assert set(rows) == set(cells)
    assert rows["longer-int8"].byte_share < rows["longer"].byte_share
    assert rows["longer-int8"].label == "Learned ITQ ECOC (16, 0) + 8 extra bits for 40 tokens + bias, int8, trained on"
    assert [rows[cell].family for cell in ("longer", "longer-int8", "adaptive")] == ["refined", "trained", "peer"]
    assert rows["low-rank-int8"].label == "Low rank 2, int8, trained on"
    assert rows["adaptive"].label == "Adaptive softmax [20], trained on"
