"""Runs in two processes, started as users start them: the losses and the model of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from architectures import MODERN
from safetensors.torch import load_file
from small_runs import TEXT
from transformers import LlamaConfig, LlamaForCausalLM

from codehead.errors import ConfigurationError
from codehead.training.config import RunConfig
from codehead.training.folder import read_record
from codehead.training.run import train
from codehead.training.tokenizer import train_bpe

RUN = {
    "decision": {"code": "minrandom", "bits": 24, "loss": "codeword", "token_bias": True},
    "training": {
        "max_steps": 6,
        "logging_steps": 1,
        "save_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "use_cpu": True,
    },
}
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
COMMAND = ["-m", "codehead"]
SHARDED = [str(Path(__file__).with_name("sharded_on_cpu.py"))]
KEYS = ["--set", "training.accelerator_config={use_configured_state: true}"]
STARTS = {
    "torchrun, DDP": ([*TORCHRUN, *COMMAND], []),
    "accelerate, DDP": ([*ACCELERATE, "--multi_gpu", *COMMAND], []),
    "torchrun, FSDP2": ([*TORCHRUN, *SHARDED], [*KEYS, "--set", "training.fsdp=true"]),
}


@pytest.fixture(scope="module")
def run_file(stories, tmp_path_factory):
    """The YAML file of a run, beside the model that it begins with."""
    folder = tmp_path_factory.mktemp("distributed")
    tokenizer = train_bpe([TEXT], 270)
    torch.manual_seed(0)
    config = LlamaConfig(**{**MODERN, "vocab_size": len(tokenizer)}, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    data = {"train": stories, "validation_fraction": 0.2, "block_size": 32}
    run = {**RUN, "model": str(folder / "model"), "data": data, "output_dir": "out"}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def alone(run_file):
    """The folder of the run in one process, by what is adapted: twice the batches are added up."""

    def run(adapt):
        folder = run_file.with_name(adapt)
        if not folder.exists():
            changes = {"adapt": adapt, "output_dir": str(folder), "training.gradient_accumulation_steps": 2}
            train(RunConfig.from_yaml(run_file, changes), progress=False)
        return folder

    return run


def started(start, run_file, out, *options):
    """Run `codehead finetune` by a launcher."""
    launcher, keys = STARTS[start]
    process = launched(launcher, "finetune", "--config", run_file, "--out", out, *keys, *options)
    assert process.stderr.count("Saved to") == 1


def launched(launcher, *words):
    """The finished process of a launcher that was given the words of a command."""
    process = subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process


def losses(folder):
    return [entry["loss"] for entry in read_record(folder)["log_history"] if "loss" in entry]


def assert_same(found, expected):
    """Two finished runs have the same losses and the same weights."""
    assert losses(found) == pytest.approx(losses(expected), rel=0, abs=1e-5)
    weights, others = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert weights.keys() == others.keys()
    for name, values in weights.items():
        torch.testing.assert_close(values, others[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_two_processes_learn_what_one_learns(start, run_file, alone, tmp_path):
    started(start, run_file, tmp_path / "out", "--adapt", "full")
    assert_same(tmp_path / "out", alone("full"))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["torchrun, DDP", "torchrun, FSDP2"])
def test_adapters_are_merged_into_a_whole_model(start, run_file, alone, tmp_path):
    started(start, run_file, tmp_path / "out", "--adapt", "lora")
    assert_same(tmp_path / "out", alone("lora"))


@pytest.mark.slow
def test_a_sharded_run_resumes(run_file, alone, tmp_path):
    out = tmp_path / "out"
    started("torchrun, FSDP2", run_file, out, "--adapt", "full")
    for file in [*out.glob("*.safetensors"), out / "codehead.json", *(out / "checkpoints" / "checkpoint-6").iterdir()]:
        file.unlink()
    record = {**json.loads((out / "run.json").read_text()), "status": "running"}
    (out / "run.json").write_text(json.dumps(record))
    started("torchrun, FSDP2", run_file, out, "--adapt", "full")
    assert_same(out, alone("full"))


def test_shards_where_there_are_none_are_refused(run_file, tmp_path):
    changes = {"output_dir": str(tmp_path / "out"), "training.fsdp": True}
    with pytest.raises(ConfigurationError, match="fsdp"):
        train(RunConfig.from_yaml(run_file, changes), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def converting(run_file, stories):
    """The words of a conversion with everything that passes over text: learning, LoRA, calibration, int4."""
    sizes = ["--bits", 24, "--steps", 60, "--backbone-steps", 4, "--block-size", 32, "--batch-size", 4]
    words = ["convert", run_file.with_name("model"), "--data", stories, *sizes, "--set", "decision.weights=int4"]
    return [*words, "--set", "training.use_cpu=true"]


def assert_same_conversion(found, expected):
    """Two folders hold the same model bit for bit, and what was measured of it differs by rounding alone."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert weights.keys() == others.keys()
    assert all(torch.equal(values, others[name]) for name, values in weights.items())
    measured, wanted = read_record(found), read_record(expected)
    for name in ("before", "after"):
        assert measured[name] == pytest.approx(wanted[name], rel=1e-9)
    assert measured["calibration"] == wanted["calibration"] and not (found / "conversion").exists()


@pytest.mark.slow
def test_two_processes_convert_as_one_does(codehead, converting, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert codehead(*converting, "--out", tmp_path / "one")[0] == 0
    process = launched([*TORCHRUN, *COMMAND], *converting, "--out", tmp_path / "two")
    assert process.stdout.count("Saved to") == 1 and process.stderr.count("measuring the new one") == 1
    assert_same_conversion(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_a_conversion_that_one_process_began_goes_on_in_two(codehead, converting, tmp_path, monkeypatch):
    assert codehead(*converting, "--out", tmp_path / "one")[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr("codehead.training.new_head.learn_together", interrupted)
        assert codehead(*converting, "--out", tmp_path / "two")[0] == 130
    launched([*ACCELERATE, "--multi_gpu", *COMMAND], *converting, "--out", tmp_path / "two")
    assert_same_conversion(tmp_path / "two", tmp_path / "one")


def interrupted(*words, **options):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(codehead, alone, stories, tmp_path):
    words = ["evaluate", alone("full"), "--data", stories, "--block-size", 32, "--batch-size", 3]
    assert codehead(*words, "--out", tmp_path / "one.json")[0] == 0
    process = launched([*ACCELERATE, "--multi_gpu", *COMMAND], *words, "--out", tmp_path / "two.json")
    assert process.stdout.count("top-1 accuracy") == 1
    found, expected = (json.loads((tmp_path / name).read_text())["metrics"] for name in ("two.json", "one.json"))
    assert found.pop("generation") and expected.pop("generation")
    assert found.pop("size") == expected.pop("size")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        exact = value is None or isinstance(value, str)
        assert found[name] == (value if exact else pytest.approx(value, rel=1e-9)), name
