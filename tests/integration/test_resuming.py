from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import CODED, CORRECTED, StopAt, finetuning, losses, pretraining, weights

from codehead.errors import CheckpointError, ConfigurationError, DataError
from codehead.training.folder import last_complete
from codehead.training.loop import ResumableLoop
from codehead.training.run import train

# --- interruption


BY_LENGTH = {
    "max_steps": 6,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 16,  # more than one epoch
    "train_sampling_strategy": "group_by_length",
}
INTERRUPTED = {
    "full": {},
    "lora": {"adapt": "lora", "lora": {"dropout": 0.3}},
    "lora, corrected": {"adapt": "lora", "decision": CORRECTED},
    "lora, distilled": {
        "adapt": "lora",
        "decision": {**CORRECTED, "code": "itq"},
        "distil": {"steps": 5, "tokens": 100},
    },
    "by length": {"training": BY_LENGTH},
}


@pytest.mark.parametrize("changes", INTERRUPTED.values(), ids=INTERRUPTED)
def test_an_interrupted_run_goes_on_with_the_same_losses(pretrained, stories, tmp_path, changes):
    if "adapt" in changes:
        config = finetuning(
            pretrained["softmax" if "decision" in changes else "coded"], stories, tmp_path / "whole", **changes
        )
    else:
        config = pretraining(stories, tmp_path / "whole", **changes)
    whole = train(config, progress=False)
    stopped = replace(config, output_dir=str(tmp_path / "stopped"))
    with pytest.raises(KeyboardInterrupt):
        train(stopped, progress=False, callbacks=[StopAt(5)])
    checkpoints = tmp_path / "stopped" / "checkpoints"
    assert last_complete(checkpoints).name == "checkpoint-4"
    half = checkpoints / "checkpoint-5"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"cut")
    assert last_complete(checkpoints).name == "checkpoint-4"
    resumed = train(stopped, progress=False)
    assert losses(resumed) == losses(whole)
    assert not half.exists()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_a_distillation_that_was_interrupted_goes_on_where_it_was(pretrained, stories, tmp_path, monkeypatch):
    changes = {"decision": {**CORRECTED, "code": "itq"}, "distil": {"steps": 12, "tokens": 100}}
    config = finetuning(pretrained["softmax"], stories, tmp_path / "whole", **changes)
    whole = train(config, progress=False)
    steps, real = [], ResumableLoop.step

    def step(loop):
        real(loop)
        steps.append(loop.done)
        if len(steps) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(ResumableLoop, "step", step)
    stopped = replace(config, output_dir=str(tmp_path / "stopped"))
    with pytest.raises(KeyboardInterrupt):
        train(stopped, progress=False)
    with pytest.raises(ConfigurationError, match=r"distil\.steps is 13, was 12"):
        train(replace(stopped, distil=replace(config.distil, steps=13)), progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, progress=False, callbacks=[StopAt(3)])
    resumed = train(stopped, progress=False)  # the decision layer is not learnt a second time
    assert steps == list(range(1, 13))
    assert losses(resumed) == losses(whole) and not (resumed / "conversion").exists()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_a_mistake_found_after_the_distillation_does_not_stand_in_the_way(pretrained, stories, tmp_path):
    changes = {"decision": {**CORRECTED, "code": "itq"}, "distil": {"steps": 2, "tokens": 100}}
    config = finetuning(pretrained["softmax"], stories, tmp_path / "run", **changes)
    with pytest.raises(ConfigurationError, match="matches no module"):
        train(replace(config, lora=replace(config.lora, target_modules=["q_proj"])), progress=False)
    train(config, progress=False)


KILLED = """
import json, os, signal, sys
from transformers import TrainerCallback
from codehead.training.config import RunConfig
from codehead.training.run import train

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

train(RunConfig.from_dict(json.loads(sys.argv[1])), progress=False, callbacks=[Kill()])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_losses(stories, tmp_path):
    config = pretraining(stories, tmp_path / "killed")
    command = [sys.executable, "-c", KILLED, json.dumps(config.to_dict())]
    finished = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert finished.returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["status"] == "running"
    resumed = train(config, progress=False)
    whole = train(pretraining(stories, tmp_path / "whole"), progress=False)
    assert losses(resumed) == losses(whole)


# --- the folder


def test_a_finished_run_is_not_repeated_unless_asked(pretrained, stories):
    config = pretraining(stories, pretrained["coded"])
    first = losses(pretrained["coded"])
    with pytest.raises(ConfigurationError, match="holds this run, finished"):
        train(config, progress=False)
    assert losses(train(config, progress=False, overwrite=True)) == first


def test_another_configuration_is_refused_by_its_first_difference(pretrained, stories):
    config = pretraining(stories, pretrained["coded"], decision={**CODED, "bits": 24})
    with pytest.raises(ConfigurationError, match=r"decision\.bits is 24, was 20; .*--overwrite"):
        train(config, progress=False)


def test_a_disk_that_was_full_at_the_first_record_is_no_obstacle(stories, tmp_path, monkeypatch):
    config = pretraining(stories, tmp_path / "run")

    def full(*names):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("codehead.training.folder.os.replace", full)
        with pytest.raises(OSError, match="No space"):
            train(config, progress=False)
    assert not list((tmp_path / "run").glob(".run*"))
    (tmp_path / "run" / ".run.json.tmp").write_text("{")  # of a process that was killed
    train(config, progress=False)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_told_before_anything_is_trained_on_it(pretrained, stories, tmp_path, damage):
    config = finetuning(pretrained["coded"], stories, tmp_path / "run", adapt="full" if damage == "flipped" else "lora")
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False, callbacks=[StopAt(5)])
    checkpoint = last_complete(tmp_path / "run" / "checkpoints")
    file = next(checkpoint.glob("*model.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content if damage == "flipped" else content[:-5])
    with pytest.raises(CheckpointError, match=f"{checkpoint.name}.* is damaged .*remove it to go on from"):
        train(config, progress=False)


def test_an_overwritten_run_is_unfinished_until_its_end(stories, tmp_path, monkeypatch):
    config = pretraining(stories, tmp_path / "run")
    train(config, progress=False)

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("codehead.training.folder.RunFolder.clear_work", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False, overwrite=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"


def test_a_folder_of_something_else_is_refused_and_its_files_stay(stories, tmp_path):
    mine = [tmp_path / "notes.txt", tmp_path / "code.safetensors", tmp_path / "checkpoints" / "keep.txt"]
    mine[2].parent.mkdir()
    for file in mine:
        file.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigurationError, match="is not empty and holds no run"):
            train(pretraining(stories, tmp_path), progress=False, overwrite=overwrite)
    assert all(file.read_text() == "mine" for file in mine)


def test_overwriting_a_run_leaves_what_is_not_its_own(stories, tmp_path):
    train(pretraining(stories, tmp_path / "run"), progress=False)
    mine = [tmp_path / "run" / "code.safetensors", tmp_path / "run" / "checkpoints" / "keep.txt"]
    for file in mine:
        file.write_text("mine")
    train(pretraining(stories, tmp_path / "run"), progress=False, overwrite=True)
    assert all(file.read_text() == "mine" for file in mine)


def test_a_mistake_found_early_does_not_stand_in_the_way_of_its_correction(stories, tmp_path):
    config = pretraining(stories, tmp_path / "run")
    short = replace(config.data, block_size=160, max_documents=1, validation_fraction=0.0)
    with pytest.raises(DataError, match=r"lower data\.block_size"):
        train(replace(config, data=short), progress=False)
    train(config, progress=False)


def test_wall_time_adds_up_over_processes(stories, tmp_path):
    config = pretraining(stories, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False, callbacks=[StopAt(3)])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["provenance"]["wall_seconds"] = 1000.0
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    train(config, progress=False)
    finished = json.loads((tmp_path / "run" / "run.json").read_text())["provenance"]
    assert finished["wall_seconds"] > 1000
    assert finished["started_at"] == record["provenance"]["started_at"]


def test_a_run_that_is_stopped_before_it_goes_on_training_still_goes_on(pretrained, stories, tmp_path, monkeypatch):
    decision = {**CORRECTED, "code": "itq"}
    distil = {"steps": 2, "tokens": 100}
    training = {"max_steps": 4, "save_steps": 2}
    config = finetuning(
        pretrained["softmax"], stories, tmp_path / "run", decision=decision, distil=distil, training=training
    )
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False, callbacks=[StopAt(3)])
    with monkeypatch.context() as patched:
        patched.setattr("codehead.training.model.fit_decision_layer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)
    train(config, progress=False)


def interrupted(*_):
    raise KeyboardInterrupt


def test_changed_data_are_noticed(stories, tmp_path):
    copy = tmp_path / "a.jsonl"
    copy.write_text(Path(stories).read_text())
    config = pretraining(str(copy), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False, callbacks=[StopAt(3)])
    copy.write_text(Path(stories).read_text().replace("cat", "cow"))
    with pytest.raises(ConfigurationError, match="a data file has changed"):
        train(config, progress=False)
