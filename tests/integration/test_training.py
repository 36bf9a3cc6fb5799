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
from transformers import TrainerCallback

from codehead.errors import CodeheadError, ConfigurationError, DataError
from codehead.evaluation.metrics import evaluate
from codehead.models import is_coded
from codehead.models.trunk import attention_projections
from codehead.training.config import RunConfig
from codehead.training.data import load_rows, tokenize
from codehead.training.distil import row_sizes
from codehead.training.folder import last_complete
from codehead.training.loop import ResumableLoop
from codehead.training.model import load_model
from codehead.training.rates import STEADY
from codehead.training.run import train
from codehead.training.tokenizer import load_tokenizer

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "red",
    "dog",
    "ran",
    "to",
    "park",
    "two",
    "small",
    "big",
    "birds",
]
CODED = {"code": "minrandom", "bits": 20}


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "stories.jsonl"
    records = [{"text": " ".join(WORDS[(i * j) % 17] for j in range(1, 40)) + "."} for i in range(1, 41)]
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "instructions.jsonl"
    records = [{"instruction": f"Say {w}.", "input": "", "output": f"{w}!"} for w in WORDS]
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


def pretraining(stories, output_dir, **changes):
    values = {
        "model": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 160},
        "tokenizer": {"train": "bpe", "vocab_size": 270},
        "data": {"train": stories, "validation_fraction": 0.2, "block_size": 32},
        "decision": CODED,
        "training": {
            "max_steps": 6,
            "save_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
        },
        "output_dir": str(output_dir),
    }
    return RunConfig.from_dict({**values, **changes})


def finetuning(model, source, output_dir, **changes):
    base = pretraining(source, output_dir).to_dict()
    return RunConfig.from_dict(
        {
            **base,
            "model": str(model),
            "tokenizer": None,
            "decision": None,
            "adapt": None,
            "data": {"train": source, "block_size": 160},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def pretrained(stories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    config = pretraining(stories, folder / "coded")
    return {
        "coded": train(config, progress=False),
        "softmax": train(pretraining(stories, folder / "softmax", decision=None), progress=False),
    }


def log(folder):
    return json.loads((folder / "run.json").read_text())["log_history"]


def losses(folder):
    return [entry["loss"] for entry in log(folder) if "loss" in entry]


def weights(folder):
    return dict(load_model(str(folder)).named_parameters())


# --- what a run leaves behind


def test_a_run_leaves_a_loadable_checkpoint_and_its_record(pretrained):
    folder = pretrained["coded"]
    assert is_coded(load_model(str(folder)))
    assert not is_coded(load_model(str(pretrained["softmax"])))
    assert len(load_tokenizer(str(folder))) == 270
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["config"]["decision"] == CODED
    assert record["provenance"]["data"][0]["name"] == "stories.jsonl"
    assert len(losses(folder)) == 6
    assert losses(folder)[-1] < losses(folder)[0]


CORRECTED = {**CODED, "loss": "codeword", "shortlist": 20, "token_bias": True}


@pytest.mark.parametrize(
    ("decision", "measured"),
    [(CODED, "node_loss"), ({**CODED, "loss": "codeword"}, "nats"), (CORRECTED, "nats")],
    ids=["bitwise", "codeword", "corrected"],
)
@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_the_saved_model_is_the_trained_one(pretrained, stories, tmp_path, decision, measured, adapt):
    """The last eval_loss of the run is what the saved, merged, reloaded model gives in our own metrics."""
    data = {"train": stories, "validation_fraction": 0.2, "block_size": 32}
    config = finetuning(
        pretrained["softmax"],
        stories,
        tmp_path / "run",
        data=data,
        decision=decision,
        adapt=adapt,
    )
    folder = train(config, progress=False)
    tokenizer = load_tokenizer(str(folder))
    rows = load_rows(config.data, config.seed).validation
    result = evaluate(load_model(str(folder)), tokenizer, tokenize(rows, tokenizer, 32), batch_size=3)
    values = {"node_loss": result.node_loss, "nats": torch.tensor(result.perplexity).log().item()}
    eval_loss = [entry["eval_loss"] for entry in log(folder) if "eval_loss" in entry][-1]
    assert values[measured] == pytest.approx(eval_loss, rel=1e-4)


@pytest.mark.parametrize("kind", ["coded", "softmax"])
@pytest.mark.parametrize("adapt", ["lora", "head", "full"])
def test_adaptation_moves_only_what_it_should(pretrained, instructions, tmp_path, kind, adapt):
    before = weights(pretrained[kind])
    after = weights(train(finetuning(pretrained[kind], instructions, tmp_path / "run", adapt=adapt), progress=False))
    old_head = before.get("lm_head.weight", before["transformer.wte.weight"])
    assert not torch.equal(old_head, after.get("lm_head.weight", after["transformer.wte.weight"]))
    moved = {name for name in before if not torch.equal(before[name], after[name])} - {"lm_head.weight"}
    expected = {
        "head": set(),
        "lora": {f"transformer.h.0.attn.{part}.weight" for part in ("c_attn", "c_proj")},
        "full": {name for name in before if name != "lm_head.weight"},
    }
    assert moved == expected[adapt]


@pytest.mark.parametrize("adapt", ["lora", "head", "full"])
def test_a_shortlist_is_counted_on_the_training_labels_and_trained(pretrained, instructions, tmp_path, adapt):
    config = finetuning(pretrained["softmax"], instructions, tmp_path / "run", decision=CORRECTED, adapt=adapt)
    folder = train(config, progress=False)
    model = load_model(str(folder))
    examples = tokenize(load_rows(config.data, config.seed).train, load_tokenizer(str(folder)), config.data.block_size)
    counts = torch.tensor([label for example in examples for label in example["labels"] if label >= 0]).bincount(
        minlength=270
    )
    assert model.decision.corrections.shortlist.tolist() == counts.argsort(descending=True, stable=True)[:20].tolist()
    assert (model.get_output_embeddings().rows.weight != 0).any()
    start = ((counts + 1.0) / (counts + 1.0).sum()).log()
    assert not torch.allclose(model.decision.corrections.token_bias, start)
    torch.testing.assert_close(model.decision.corrections.token_bias, start, rtol=0, atol=1.0)  # it began there


def test_a_decision_layer_learns_from_the_old_head_before_the_training(pretrained, stories, tmp_path):
    data = {"train": stories, "validation_fraction": 0.2, "block_size": 32}

    def first_loss(name, **changes):
        training = {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 4}
        config = finetuning(pretrained["softmax"], stories, tmp_path / name, data=data, training=training, **changes)
        return [entry["eval_loss"] for entry in log(train(config, progress=False)) if "eval_loss" in entry][-1]

    softmax = first_loss("softmax")
    random = first_loss("random", decision={**CODED, "loss": "codeword"})
    learnt = first_loss("learnt", decision={**CORRECTED, "code": "itq"}, distil={"steps": 40, "tokens": 2000})
    assert abs(learnt - softmax) < 0.05 * (random - softmax)
    assert load_model(str(tmp_path / "learnt")).config.quantization_config["design"] == "learned"


class KeepsRates(TrainerCallback):
    """Keeps the learning rate that every parameter begins with."""

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        rates = {id(values): group["initial_lr"] for group in optimizer.param_groups for values in group["params"]}
        trained = {name: values for name, values in model.named_parameters() if values.requires_grad}
        assert rates.keys() == {id(values) for values in trained.values()}
        self.rates = {name: rates[id(values)] for name, values in trained.items()}
        self.sizes = {name: float(row_sizes(values.detach()).median()) for name, values in trained.items()}


@pytest.mark.parametrize("adapt", ["full", "lora", "head"])
@pytest.mark.parametrize("start", ["old_head", "random"])
def test_a_code_that_began_at_the_old_head_moves_slowly(pretrained, stories, tmp_path, adapt, start):
    decision = {"code": "additive", "bits": 12, "loss": "codeword", "token_bias": True, "start": start}
    kept = KeepsRates()
    train(
        finetuning(pretrained["softmax"], stories, tmp_path, decision=decision, adapt=adapt),
        callbacks=[kept],
        progress=False,
    )
    usual = max(kept.rates.values()) if adapt != "head" else 1.0
    for name, rate in kept.rates.items():
        layer = "lm_head" in name or "decision" in name
        slowed = layer and start == "old_head"
        assert rate == pytest.approx(min(usual, STEADY * kept.sizes[name])) if slowed else rate <= usual
    if start == "random":
        assert len(set(kept.rates.values())) == 1


def test_a_new_head_whose_code_is_not_named_learns_at_the_rate_of_the_run(pretrained, stories, tmp_path):
    kept, decision = KeepsRates(), {"loss": "codeword"}
    config = finetuning(pretrained["softmax"], stories, tmp_path, decision=decision, adapt="full")
    train(config, callbacks=[kept], progress=False)
    assert set(kept.rates.values()) == {0.01}


def test_the_decision_layer_may_have_a_rate_of_its_own(pretrained, stories, tmp_path):
    kept, decision = KeepsRates(), {"code": "minrandom", "bits": 12}
    config = finetuning(
        pretrained["softmax"], stories, tmp_path, decision=decision, adapt="full", head_learning_rate=0.5
    )
    train(config, callbacks=[kept], progress=False)
    assert {rate == 0.5 for name, rate in kept.rates.items() if name.startswith("lm_head")} == {True}
    assert [name for name, rate in kept.rates.items() if rate == 0.5] == ["lm_head.weight"]
    assert json.loads((tmp_path / "run.json").read_text())["config"]["head_learning_rate"] == 0.5
    with pytest.raises(ConfigurationError, match="head_learning_rate is -1"):
        finetuning(pretrained["softmax"], stories, tmp_path, head_learning_rate=-1)
    tied = finetuning(pretrained["softmax"], stories, tmp_path / "tied", adapt="full", head_learning_rate=0.5)
    with pytest.raises(ConfigurationError, match=r"head_learning_rate is 0\.5, but the head is the input embedding"):
        train(tied, progress=False)


def test_a_code_that_was_trained_before_moves_slowly_too(pretrained, stories, tmp_path):
    decision = {"code": "additive", "bits": 12, "loss": "codeword", "token_bias": True}
    first = finetuning(pretrained["softmax"], stories, tmp_path / "first", decision=decision, adapt="full")
    again, bitwise = KeepsRates(), KeepsRates()
    train(finetuning(train(first, progress=False), stories, tmp_path / "again"), callbacks=[again], progress=False)
    rates = {name: rate for name, rate in again.rates.items() if "lora_" not in name}
    assert len(rates) == 2
    assert rates == {name: pytest.approx(min(0.01, STEADY * again.sizes[name])) for name in rates}
    assert json.loads((tmp_path / "again/run.json").read_text())["head_rates"] == rates
    train(finetuning(pretrained["coded"], stories, tmp_path / "bits"), callbacks=[bitwise], progress=False)
    assert set(bitwise.rates.values()) == {0.01}


@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_a_run_is_calibrated_on_its_validation_data_before_it_is_saved(pretrained, stories, tmp_path, adapt):
    changes = {"data": {"train": stories, "validation_fraction": 0.2, "block_size": 32}, "adapt": adapt}
    changes |= {"calibrate": {"tokens": 10_000}, "decision": {**CODED, "bits": 60}}
    config = finetuning(pretrained["softmax"], stories, tmp_path / "run", **changes)
    folder = train(config, progress=False)
    found = json.loads((folder / "run.json").read_text())["calibration"]
    assert found["perplexity_after"] < found["perplexity_before"] and len(found["scales"]) == 60
    held_out = tokenize(load_rows(config.data, config.seed).validation, load_tokenizer(str(folder)), 32)
    measured = evaluate(load_model(str(folder)), load_tokenizer(str(folder)), held_out)
    assert measured.tokens == found["tokens"]
    assert measured.perplexity == pytest.approx(found["perplexity_after"], rel=1e-3)


def test_what_cannot_be_calibrated_is_told_before_the_training(pretrained, stories, tmp_path):
    changes = {"data": {"train": stories, "validation_fraction": 0.2, "block_size": 32}, "calibrate": {}}
    with pytest.raises(ConfigurationError, match="has no decision layer to calibrate"):
        train(finetuning(pretrained["softmax"], stories, tmp_path / "run", **changes), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_another_code(pretrained, stories, tmp_path):
    layer = {"code": "itq", "bits": 24, "start": "old_head"}
    config = finetuning(pretrained["softmax"], stories, tmp_path / "run", decision=layer)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False, callbacks=[StopAt(5)])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["provenance"]["codebook"]) == 64
    record["provenance"]["codebook"] = "0" * 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigurationError, match="began with the codebook 000"):
        train(config, progress=False)


@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_neither_training_nor_its_evaluation_is_as_wide_as_the_vocabulary(
    pretrained, stories, tmp_path, monkeypatch, adapt
):
    def refuse(self, bit_logits):
        raise AssertionError("logits over V tokens were formed")

    monkeypatch.setattr("codehead.layer.Decision.logits", refuse)
    data = {"train": stories, "validation_fraction": 0.2, "block_size": 32}
    config = finetuning(pretrained["coded"], stories, tmp_path / "run", data=data, adapt=adapt)
    assert any("eval_loss" in entry for entry in log(train(config, progress=False)))


def test_options_of_the_trainer_pass_through(stories, tmp_path):
    training = {
        "max_steps": 4,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "bf16": True,
        "use_cpu": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "load_best_model_at_end": True,
        "learning_rate": 0.01,
    }
    folder = train(pretraining(stories, tmp_path / "run", training=training), progress=False)
    evaluated = [entry["eval_loss"] for entry in log(folder) if "eval_loss" in entry]
    assert len(evaluated) == 3
    assert evaluated[-1] == pytest.approx(min(evaluated), rel=1e-4)


@pytest.mark.parametrize("adapt", ["full", "head", "lora"])
def test_weights_are_rounded_after_mixed_precision(pretrained, stories, tmp_path, adapt):
    training = {"max_steps": 2, "per_device_train_batch_size": 2, "bf16": True, "use_cpu": True}
    changes = {"decision": {"bits": 24}, "adapt": adapt, "training": training, "int8": True}
    config = finetuning(pretrained["softmax"], stories, tmp_path / "run", **changes)
    head = load_model(str(train(config, progress=False))).get_output_embeddings()
    assert torch.int8 in {values.dtype for values in head.buffers()}


def test_attention_projections_of_another_architecture():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=50,
        )
    )
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert attention_projections(model) == [f"model.layers.0.self_attn.{part}" for part in parts]


# --- interruption


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


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


# --- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"model_type": "gpt22"}}, r"unknown model.model_type 'gpt22'; did you mean 'gpt2'\?"),
        ({"model": {"model_type": "gpt2", "n_emb": 3}}, r"unknown key 'model.n_emb'; did you mean 'n_embd'\?"),
        (
            {"model": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 100}},
            "tokenizer has 270 entries but the model only 100 embeddings",
        ),
        (
            {"model": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}},
            "block_size is 32, but the model takes at most 8 tokens",
        ),
        ({"training": {"max_steps": 2, "lr_scheduler_type": "nonsense"}}, "transformers refuses"),
        ({"decision": {"code": "minrandm"}}, "did you mean 'minrandom'"),
    ],
)
def test_mistakes_are_named(stories, tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        train(pretraining(stories, tmp_path / "run", **changes), progress=False)


def test_a_missing_model_is_named(stories, tmp_path, pretrained):
    config = finetuning(tmp_path / "none", stories, tmp_path / "run", tokenizer=str(pretrained["coded"]))
    with pytest.raises(ConfigurationError, match=r"model .*none' could not be loaded"):
        train(config, progress=False)


def test_missing_data_are_named_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        train(pretraining(str(tmp_path / "none.jsonl"), tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_softmax_options_are_refused_for_a_coded_checkpoint(pretrained, stories, tmp_path):
    training = {"max_steps": 2, "label_smoothing_factor": 0.1}
    config = finetuning(pretrained["coded"], stories, tmp_path / "run", training=training)
    with pytest.raises(ConfigurationError, match=r"label_smoothing_factor is 0\.1, which no coded head"):
        train(config, progress=False)


def test_lora_targets_that_match_nothing(pretrained, stories, tmp_path):
    config = finetuning(pretrained["coded"], stories, tmp_path / "run", lora={"target_modules": ["q_proj"]})
    with pytest.raises(ConfigurationError, match=r"\['q_proj'\] matches no module of GPT2LMHeadModel"):
        train(config, progress=False)


def test_a_diverged_run_stops_and_says_so(stories, tmp_path):
    training = {"max_steps": 6, "logging_steps": 1, "learning_rate": 1e38, "max_grad_norm": 0.0}
    with pytest.raises(CodeheadError, match=r"training loss is (nan|inf) at step \d.*learning_rate"):
        train(pretraining(stories, tmp_path / "run", training=training), progress=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()
