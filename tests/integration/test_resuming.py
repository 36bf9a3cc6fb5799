from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import CODED, CORRECTED, StopAt, finetuning, losses, pretraining, weights
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainerCallback

from codehead.errors import CheckpointError, CodeheadError, ConfigurationError, DataError
from codehead.training.folder import RunFolder
from codehead.training.loop import ResumableLoop
from codehead.training.run import train
from codehead.training.tokenizer import load_tokenizer


@pytest.fixture
def finished(pretrained, tmp_path):
    """A run of its own, at its end, with a coded head."""
    return shutil.copytree(pretrained["coded"], tmp_path / "run")


@pytest.fixture(scope="module")
def stopped_once(stories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        train(pretraining(stories, folder), progress=False, callbacks=[StopAt(5)])
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run of its own that was stopped at its fifth step of six."""
    return shutil.copytree(stopped_once, tmp_path / "run")


# --- interruption


def assert_same_weights(one, other):
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


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
    assert RunFolder(stopped).last_checkpoint().name == "checkpoint-4"
    half = checkpoints / "checkpoint-5"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"cut")
    assert RunFolder(stopped).last_checkpoint().name == "checkpoint-4"
    resumed = train(stopped, progress=False)
    assert losses(resumed) == losses(whole)
    assert not half.exists()
    assert_same_weights(whole, resumed)


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
    assert_same_weights(whole, resumed)


def test_a_mistake_found_after_the_distillation_does_not_stand_in_the_way(pretrained, stories, tmp_path):
    changes = {"decision": {**CORRECTED, "code": "itq"}, "distil": {"steps": 2, "tokens": 100}}
    config = finetuning(pretrained["softmax"], stories, tmp_path / "run", **changes)
    with pytest.raises(ConfigurationError, match="matches no module"):
        train(replace(config, lora=replace(config.lora, target_modules=["q_proj"])), progress=False)
    train(config, progress=False)


def numbers(folder):
    """What `run.json` says, but for times and the folder's name."""
    record = json.loads((folder / "run.json").read_text())
    del record["config"]["output_dir"], record["provenance"]["wall_seconds"], record["provenance"]["started_at"]
    timed = ("runtime", "per_second")
    record["log_history"] = [
        {key: value for key, value in entry.items() if not key.endswith(timed)} for entry in record["log_history"]
    ]
    return record


def failing(error, message="stopped here"):
    def fail(*args, **kwargs):
        raise error(message)

    return fail


def ends(pretrained, stories, folder):
    """A run with all that can come after the last step, which is in the middle of an epoch and not logged."""
    training = {
        "max_steps": 5,
        "save_steps": 2,
        "logging_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
    }
    return finetuning(
        pretrained["softmax"],
        stories,
        folder,
        data={"train": stories, "validation_fraction": 0.2, "block_size": 32},
        decision={**CORRECTED, "code": "itq"},
        distil={"steps": 3, "tokens": 100},
        lora={"dropout": 0.3},
        calibrate={"tokens": 500},
        int4=True,
        training=training,
    )


@pytest.fixture(scope="module")
def ended(pretrained, stories, tmp_path_factory):
    return train(ends(pretrained, stories, tmp_path_factory.mktemp("ended") / "run"), progress=False)


AFTER_THE_LAST_STEP = [
    "codehead.training.trainer.Trainer.evaluate",
    "codehead.training.run.merge",
    "codehead.training.new_head.text_outputs",
    "codehead.training.new_head.to_int4",
    "codehead.training.new_head.hidden_states",
    "codehead.models.coded.integrity.staged",
    "codehead.training.folder._order",
    "codehead.training.loop.Stages.remove",
    "codehead.training.folder.RunFolder.finish",
]


@pytest.mark.parametrize("place", AFTER_THE_LAST_STEP)
def test_a_run_that_is_stopped_after_its_last_step_ends_as_if_it_were_not(
    pretrained, stories, tmp_path, ended, monkeypatch, place
):
    config = ends(pretrained, stories, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(place, failing(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)
    assert RunFolder(config).last_checkpoint().name == "checkpoint-5"
    folder = train(config, progress=False)
    assert numbers(folder) == numbers(ended)
    assert (folder / "model.safetensors").read_bytes() == (ended / "model.safetensors").read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in ended.iterdir()}


SCHEDULES = {
    "part of an epoch": {"num_train_epochs": 1.6, "gradient_accumulation_steps": 3},
    "an epoch's end": {"num_train_epochs": 2, "eval_strategy": "epoch", "logging_strategy": "epoch", "save_steps": 1},
    "saved by epochs": {"num_train_epochs": 2, "save_strategy": "epoch", "eval_strategy": "steps", "eval_steps": 2},
    "cut short": {"max_steps": 5, "gradient_accumulation_steps": 2, "eval_strategy": "epoch", "save_steps": 1},
    "the best": {
        "num_train_epochs": 2,
        "save_strategy": "best",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_strategy": "epoch",
        "metric_for_best_model": "loss",
        "load_best_model_at_end": True,
    },
}


class StopAfterSave(TrainerCallback):
    def __init__(self, number):
        self.left = number

    def on_save(self, args, state, control, **kwargs):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_run_goes_on_from_each_of_its_checkpoints_to_the_same_end(stories, tmp_path, schedule):
    training = {"per_device_train_batch_size": 16, "learning_rate": 0.01, "logging_steps": 3, "save_steps": 2}
    config = pretraining(stories, tmp_path / "whole", training={**training, **schedule})
    whole = train(config, progress=False)
    for number in range(1, 20):
        stopped = replace(config, output_dir=str(tmp_path / str(number)))
        try:
            train(stopped, progress=False, callbacks=[StopAfterSave(number)])
        except KeyboardInterrupt:
            train(stopped, progress=False)
        else:
            break
        assert numbers(tmp_path / str(number)) == numbers(whole), number
        files = [folder / "model.safetensors" for folder in (whole, tmp_path / str(number))]
        assert files[0].read_bytes() == files[1].read_bytes(), number
    assert number > 1


def test_the_mean_loss_is_that_of_all_steps(stories, stopped):
    folder = train(pretraining(stories, stopped), progress=False)
    found = [entry["train_loss"] for entry in json.loads((folder / "run.json").read_text())["log_history"][-2:-1]]
    assert found == pytest.approx([sum(losses(folder)) / 6], rel=1e-6)


def test_a_run_that_stopped_early_does_not_go_on(stories, tmp_path):
    training = {
        "max_steps": 8,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "learning_rate": 0.0,  # nothing gets better
        "metric_for_best_model": "loss",
        "load_best_model_at_end": True,
    }
    config = pretraining(stories, tmp_path / "run", training=training)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False, callbacks=[EarlyStoppingCallback(2), StopAfterSave(3)])
    train(config, progress=False, callbacks=[EarlyStoppingCallback(2), StopAt(7)])


def test_the_best_checkpoint_is_found_where_the_folder_was_moved(stories, tmp_path):
    training = {
        "max_steps": 4,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "loss",
        "greater_is_better": True,  # so that the first is the best
        "load_best_model_at_end": True,
    }
    config = pretraining(stories, tmp_path / "run", training=training)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False, callbacks=[StopAfterSave(2)])
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"].endswith("checkpoint-2")
    shutil.copytree(tmp_path / "run", tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost" / "checkpoints" / "checkpoint-2")
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = train(replace(config, output_dir=str(tmp_path / "moved")), progress=False)
    best = AutoModelForCausalLM.from_pretrained(moved / "checkpoints" / "checkpoint-2")
    found = weights(moved)
    for name, value in best.named_parameters():
        assert torch.equal(value, found[name]), name
    with pytest.raises(CheckpointError, match="checkpoint-2' is missing"):
        train(replace(config, output_dir=str(tmp_path / "lost")), progress=False)


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


KILLED_AT_THE_END = """
import importlib, json, os, signal, sys
from codehead.training.config import RunConfig
from codehead.training.run import train

name, part = sys.argv[2].rsplit(":", 1)
*owner, name_of_call = part.split(".")
place = importlib.import_module(name)
for step in owner:
    place = getattr(place, step)
setattr(place, name_of_call, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
train(RunConfig.from_dict(json.loads(sys.argv[1])), progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["run:merge", "new_head:to_int4", "folder:_order", "loop:Stages.remove"])
def test_a_run_that_is_killed_after_its_last_step_ends_as_if_it_were_not(pretrained, stories, tmp_path, ended, place):
    config = ends(pretrained, stories, tmp_path / "run")
    command = [sys.executable, "-c", KILLED_AT_THE_END, json.dumps(config.to_dict()), f"codehead.training.{place}"]
    finished = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert finished.returncode == -signal.SIGKILL
    folder = train(config, progress=False)
    assert numbers(folder) == numbers(ended)
    assert (folder / "model.safetensors").read_bytes() == (ended / "model.safetensors").read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in ended.iterdir()}


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
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    for left in (".run.json.tmp", ".lock"):
        (tmp_path / "run" / left).write_text("{")  # of a process that was killed
    train(config, progress=False)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_told_before_anything_is_trained_on_it(pretrained, stories, tmp_path, damage):
    config = finetuning(pretrained["coded"], stories, tmp_path / "run", adapt="full" if damage == "flipped" else "lora")
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False, callbacks=[StopAt(5)])
    checkpoint = RunFolder(config).last_checkpoint()
    file = next(checkpoint.glob("*model.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content if damage == "flipped" else content[:-5])
    with pytest.raises(CheckpointError, match=f"{checkpoint.name}.* is damaged .*remove it to resume from"):
        train(config, progress=False)


def test_an_overwritten_run_is_unfinished_until_its_end(stories, finished):
    config = pretraining(stories, finished)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False, overwrite=True, callbacks=[StopAt(1)])
    assert json.loads((finished / "run.json").read_text())["status"] == "running"
    assert RunFolder(config).last_checkpoint() is None
    train(config, progress=False)


def files_of(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("call", ["RunFolder.clear_work", "Trainer.create_optimizer"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_run_that_overwrites_touches_nothing_before_its_first_step(stories, finished, monkeypatch, call, error):
    before = files_of(finished)
    place = "codehead.training.folder." if call.startswith("RunFolder") else "codehead.training.trainer."
    monkeypatch.setattr(place + call, failing(error))
    with pytest.raises(error):
        train(replace(pretraining(stories, finished), seed=1), progress=False, overwrite=True)
    assert files_of(finished) == before


@pytest.mark.parametrize("kind", ["coded", "softmax"])
def test_an_old_model_stays_until_the_new_one_is_written_whole(pretrained, stories, tmp_path, monkeypatch, kind):
    folder = shutil.copytree(pretrained[kind], tmp_path / "run")
    before = files_of(folder)
    other = replace(pretraining(stories, folder, decision=CODED if kind == "coded" else None), seed=1)

    def full(self, place, *args, **kwargs):
        (Path(place) / "tokenizer.json").write_text("{")
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
        with pytest.raises(OSError, match="No space"):
            train(other, progress=False, overwrite=True)
    models = {name for name in before if name.parent == Path() and name.name != "run.json"}
    assert len(models) > 3
    after = files_of(folder)
    assert {name: after[name] for name in models} == {name: before[name] for name in models}
    assert {path.name for path in folder.iterdir()} == {*map(str, models), "run.json", "checkpoints"}
    train(other, progress=False)
    assert (folder / "model.safetensors").read_bytes() != before[Path("model.safetensors")]


def test_a_folder_of_something_else_is_refused_and_its_files_stay(stories, tmp_path):
    mine = [tmp_path / "notes.txt", tmp_path / "code.safetensors", tmp_path / "checkpoints" / "keep.txt"]
    mine[2].parent.mkdir()
    for file in mine:
        file.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigurationError, match="is not empty and holds no run"):
            train(pretraining(stories, tmp_path), progress=False, overwrite=overwrite)
    assert all(file.read_text() == "mine" for file in mine)


def test_overwriting_a_run_leaves_what_is_not_its_own(stories, finished):
    mine = [finished / "code.safetensors", finished / "checkpoints" / "keep.txt"]
    for file in mine:
        file.write_text("mine")
    train(pretraining(stories, finished), progress=False, overwrite=True)
    assert all(file.read_text() == "mine" for file in mine)


def test_a_mistake_found_early_does_not_stand_in_the_way_of_its_correction(stories, tmp_path):
    config = pretraining(stories, tmp_path / "run")
    short = replace(config.data, block_size=160, max_documents=1, validation_fraction=0.0)
    with pytest.raises(DataError, match=r"lower data\.block_size"):
        train(replace(config, data=short), progress=False)
    train(config, progress=False)


def test_wall_time_adds_up_over_processes(stories, stopped):
    record = json.loads((stopped / "run.json").read_text())
    record["provenance"]["wall_seconds"] = 1000.0
    (stopped / "run.json").write_text(json.dumps(record))
    train(pretraining(stories, stopped), progress=False)
    found = json.loads((stopped / "run.json").read_text())["provenance"]
    assert found["wall_seconds"] > 1000
    assert found["started_at"] == record["provenance"]["started_at"]


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
        patched.setattr("codehead.training.run.fit_decision_layer", interrupted)
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


@pytest.mark.parametrize("distil", [None, {"steps": 2, "tokens": 100}], ids=["trained", "distilled"])
def test_a_model_or_tokenizer_that_changed_since_is_noticed(pretrained, stories, tmp_path, distil):
    """At the first checkpoint of the training, or before there is one."""
    base = tmp_path / "base"
    shutil.copytree(pretrained["softmax"], base)
    changes = {"decision": CORRECTED, "adapt": "lora", "distil": distil}
    config = finetuning(base, stories, tmp_path / "run", **changes)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False, callbacks=[StopAt(5 if distil is None else 1)])
    tokenizer = load_tokenizer(str(base))
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(base)
    with pytest.raises(ConfigurationError, match=r"began with the tokenizer .* it has changed since"):
        train(config, progress=False)
    (base / "chat_template.jinja").unlink()
    load_tokenizer(str(pretrained["softmax"])).save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1
    model.save_pretrained(base)
    with pytest.raises(ConfigurationError, match=r"began with the weights .* the model has changed since"):
        train(config, progress=False)


def test_newer_checkpoints_stay_where_older_ones_are_dated_in_the_future(stories, stopped):
    for step, date in ((2, 5_000_000_000), (4, 4_000_000_000)):
        os.utime(stopped / "checkpoints" / f"checkpoint-{step}", (date, date))
    train(pretraining(stories, stopped), progress=False)
    left = {path.name for path in (stopped / "checkpoints").iterdir()}
    assert left == {"checkpoint-4", "checkpoint-6"}


@pytest.mark.parametrize("limit", [None, 1, 3])
def test_as_many_checkpoints_are_kept_as_asked_for(stories, tmp_path, limit):
    training = {"max_steps": 4, "save_steps": 1, "save_total_limit": limit}
    train(pretraining(stories, tmp_path / "run", training=training), progress=False)
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == [f"checkpoint-{step}" for step in (1, 2, 3, 4)][-(limit or 4) :]


# --- a failed start


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "max_grad_norm", "adam_beta2"])
@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_numbers_that_nothing_can_be_learnt_with_are_refused(stories, tmp_path, name, value):
    config = pretraining(stories, tmp_path / "run")
    with pytest.raises(ConfigurationError, match=name):
        train(replace(config, training={**config.training, name: value}), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["save_only_model", "ignore_data_skip"])
def test_options_that_a_run_could_not_go_on_with_are_refused(stories, tmp_path, name):
    config = pretraining(stories, tmp_path / "run")
    with pytest.raises(ConfigurationError, match=f"training.{name} is true, but a run must be resumable"):
        train(replace(config, training={**config.training, name: True}), progress=False)


@pytest.mark.parametrize("place", ["create_optimizer", "get_train_dataloader", "training_step", "_save_checkpoint"])
def test_a_run_that_has_come_to_nothing_stands_in_no_others_way(stories, tmp_path, monkeypatch, place):
    config = pretraining(stories, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(f"codehead.training.trainer.Trainer.{place}", failing(RuntimeError))
        with pytest.raises(RuntimeError, match="stopped here"):
            train(config, progress=False)
    train(replace(config, seed=1), progress=False)


@pytest.mark.parametrize("error", [CodeheadError, ConfigurationError])
def test_a_learning_that_failed_at_once_can_be_corrected(pretrained, stories, tmp_path, monkeypatch, error):
    changes = {"decision": {**CORRECTED, "code": "itq"}, "training": {"max_steps": 1}}
    distil = {"steps": 3, "tokens": 100}
    config = finetuning(pretrained["softmax"], stories, tmp_path / "run", distil=distil, **changes)
    with monkeypatch.context() as patched:
        patched.setattr("codehead.training.loop.refuse_divergence", failing(error))
        with pytest.raises(error):
            train(config, progress=False)
    assert not (tmp_path / "run").exists()
    train(replace(config, distil=replace(config.distil, learning_rate=0.001)), progress=False)


# --- other processes


HOLD = """
import sys, time
from pathlib import Path
from codehead.training.folder import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_one_process_works_in_a_folder_at_a_time_and_a_killed_one_makes_room(stories, tmp_path, monkeypatch):
    config = pretraining(stories, tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        for overwrite in (False, True):
            with pytest.raises(ConfigurationError, match=r"another command is using '.*run'; wait"):
                train(config, progress=False, overwrite=overwrite)
        with monkeypatch.context() as patched:
            patched.setenv("RANK", "1")  # another process of the same run
            with RunFolder(config).locked():
                pass
        other.kill()
    assert not (train(config, progress=False) / ".lock").exists()
