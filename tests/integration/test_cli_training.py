from __future__ import annotations

import dataclasses
import inspect
import json
import shutil

import pytest
import torch
from transformers import TrainingArguments

from codehead.cli.options import KEYS
from codehead.cli.training import finetune, pretrain
from codehead.config import DecisionConfig
from codehead.errors import ConfigurationError
from codehead.models.surgery import is_coded
from codehead.training.config import RunConfig
from codehead.training.model import load_model
from codehead.training.tokenizer import load_tokenizer


def test_pretrain_from_flags_alone(codehead, place, tmp_path):
    status, _, err = codehead(
        "pretrain",
        *("--model", "{model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2, n_positions: 32}"),
        *("--tokenizer", "{train: bpe, vocab_size: 270}", "--train", place / "text.txt", "--block-size", 16),
        *("--code", "minimal", "--max-steps", 2, "--batch-size", 2, "--set", "training.warmup_steps=1"),
        *("--out", tmp_path / "run"),
    )
    assert status == 0, err
    assert load_model(str(tmp_path / "run")).decision.table.length == 9
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["training"] == {"max_steps": 2, "per_device_train_batch_size": 2, "warmup_steps": 1}


def test_finetune_with_a_file_and_flags_over_it(codehead, place, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {place / 'model'}\ndata: {{train: {place / 'text.txt'}, block_size: 16}}\n"
        f"decision: {{code: minrandom, bits: 20}}\noutput_dir: {tmp_path / 'run'}\ntraining: {{max_steps: 9}}\n"
    )
    status, _, err = codehead("finetune", "-c", file, "--max-steps", 1, "--bits", 24, "--adapt", "head")
    assert status == 0, err
    assert load_model(str(tmp_path / "run")).decision.table.length == 24
    status, _, err = codehead("finetune", "-c", file, "--max-steps", 1, "--bits", 24, "--adapt", "head")
    assert status == 2
    assert "finished" in err


def test_finetune_a_coded_model_with_another_loss_and_decoder(codehead, place, coded_folder, tmp_path):
    out = tmp_path / "run"
    run = ("--train", place / "text.txt", "--out", out, "--block-size", 16, "--max-steps", 1, "--adapt", "head")
    status, _, err = codehead("finetune", "--model", coded_folder, *run, "--loss", "codeword", "--decoder", "hamming")
    assert status == 0, err
    decision, before = load_model(str(out)).decision, load_model(str(coded_folder)).decision
    assert (decision.loss_name, decision.decoder_name) == ("codeword", "hamming")
    assert torch.equal(decision.table.sign_plane, before.table.sign_plane)


def test_finetune_within_a_budget(codehead, place, tmp_path):
    run = ("--train", place / "text.txt", "--out", tmp_path / "run", "--max-steps", 2, "--block-size", 16)
    options = ("--set", "training.use_cpu=true", "--budget", "60%")
    status, _, err = codehead("finetune", "--model", place / "model", *run, *options)
    assert status == 0, err
    assert "% of the Softmax head's 8,704 in bf16" in " ".join(err.split())
    described = load_model(str(tmp_path / "run")).config.quantization_config
    layer = described["decision"]
    assert (
        layer["weights"] in ("int8", "int4") and layer["code"] == "learned" and layer["token_bias"] and layer["packed"]
    )
    for own in (("--bits", 20), ("--set", "int4=true"), ("--set", "decision.packed=false")):
        status, _, err = codehead("finetune", "--model", place / "model", *run, *options, *own)
        assert status == 2 and "which chooses the decision layer; omit it, or " in " ".join(err.split())
    options = (*options, "--set", "distil.steps=3", "--seed", 4, "--overwrite")
    status, _, err = codehead("finetune", "--model", place / "model", *run, *options)
    assert status == 0, err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["distil"]["steps"] == 3
    assert load_model(str(tmp_path / "run")).config.quantization_config["codebook"]["seed"] == 4


def test_the_seed_of_a_run_makes_no_decision_layer(codehead, place, coded_folder, tmp_path):
    run = ("--train", place / "text.txt", "--block-size", 16, "--max-steps", 1, "--adapt", "head", "--seed", 3)
    for model in (place / "model", coded_folder):
        status, _, err = codehead("finetune", "--model", model, *run, "--out", tmp_path / model.name)
        assert status == 0, err
        assert is_coded(load_model(str(tmp_path / model.name))) == (model == coded_folder)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.optim=foo", "transformers refuses"),
        ("training.lr_scheduler_type=foo", "transformers refuses"),
        ("training.logging_steps=0", "transformers refuses"),
        ("training.report_to=comet_ml", "transformers refuses"),
        ("training.per_device_train_batch_size=0", "give a whole number of at least 1"),
        ("training.gradient_accumulation_steps=0", "give a whole number of at least 1"),
        ("training.max_steps=0", "training.max_steps is 0"),
        ("training.max_steps=-5", "training.max_steps is -5"),
        ("training.num_train_epochs=0", "training.num_train_epochs is 0"),
        ("lora.target_modules=[foo]", "matches no module"),
        ("data.validation=SHORT", "the validation data has 3 tokens"),
    ],
)
def test_mistakes_are_told_before_anything_is_learnt(codehead, place, tmp_path, monkeypatch, setting, message):
    monkeypatch.setattr("codehead.training.run.fit_decision_layer", None)  # a call would fail
    (tmp_path / "short.jsonl").write_text('{"text": "ab"}')
    run = ("--train", place / "text.txt", "--out", tmp_path / "run", "--block-size", 16, "--budget", "60%")
    setting = setting.replace("SHORT", str(tmp_path / "short.jsonl"))
    status, _, err = codehead("finetune", "--model", place / "model", *run, "--set", setting)
    assert status == 2 and message in " ".join(err.split())


def test_a_mistake_does_not_lock_a_folder_that_was_to_be_overwritten(codehead, place, tmp_path, monkeypatch):
    run = ("--train", place / "text.txt", "--out", tmp_path / "run", "--max-steps", 1, "--block-size", 16)
    run = ("finetune", "--model", place / "model", *run, "--budget", "60%", "--set", "distil.steps=2")
    assert codehead(*run)[0] == 0
    monkeypatch.setattr("codehead.training.distil._check", refuse)
    assert codehead(*run, "--overwrite")[0] == 2
    monkeypatch.undo()
    status, _, err = codehead(*run, "--overwrite")
    assert status == 0, err


def refuse(*_):
    raise ConfigurationError("no")


def test_finetune_passes_options_of_code_and_head(codehead, place, tmp_path):
    out = tmp_path / "run"
    run = ("--train", place / "text.txt", "--out", out, "--block-size", 16, "--max-steps", 1, "--adapt", "head")
    options = ("--set", "decision.head_params={bias: true}", "--set", "decision.code_params.candidates=2")
    status, _, err = codehead("finetune", "--model", place / "model", *run, "--bits", 20, *options)
    assert status == 0, err
    model = load_model(str(out))
    assert model.get_output_embeddings().bias is not None
    assert model.config.quantization_config["decision"]["code_params"]["candidates"] == 2


CHAT = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + (eos_token if m['role'] == 'assistant' else '') }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def test_conversations_are_learnt_and_evaluated_in_the_chat_template(codehead, place, tmp_path):
    talk = [{"role": "user", "content": "The cat?"}, {"role": "assistant", "content": "sat on the mat."}]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps({"messages": talk * 2}) for _ in range(8)))
    line = ("--train", tmp_path / "chat.jsonl", "--block-size", 64, "--max-steps", 2, "--out", tmp_path / "run")
    status, _, err = codehead("finetune", "--model", place / "model", *line)
    assert (status, "no chat template" in err) == (2, True)
    folder = shutil.copytree(place / "model", tmp_path / "model")
    (folder / "chat_template.jinja").write_text(CHAT)
    status, _, err = codehead("finetune", "--model", folder, "--bits", 20, *line)
    assert status == 0, err
    assert (tmp_path / "run" / "chat_template.jinja").read_text() == CHAT
    data = ("--data", tmp_path / "chat.jsonl", "--block-size", 64, "--repeats", 0, "--json")
    status, out, err = codehead("evaluate", tmp_path / "run", *data)
    assert status == 0, err
    tokenizer = load_tokenizer(str(folder))
    turn = tokenizer(talk[1]["content"], add_special_tokens=False)["input_ids"]
    assert json.loads(out)["metrics"]["tokens"] % (len(turn) + 1) == 0  # whole turns, each with its end
    assert json.loads(out)["metrics"]["tokens"] >= 8 * (len(turn) + 1)


def test_each_training_command_refuses_the_other_kind(codehead, place, tmp_path):
    common = ("--train", place / "text.txt", "--out", tmp_path / "run")
    status, _, err = codehead("pretrain", "--model", place / "model", *common)
    assert (status, "use codehead finetune" in err) == (2, True)
    architecture = ("--model", "{model_type: gpt2}", "--tokenizer", place / "model")
    status, _, err = codehead("finetune", *architecture, *common)
    assert (status, "codehead pretrain" in err) == (2, True)


def test_every_flag_sets_a_key_that_exists():
    values = RunConfig.from_dict({"model": "m", "data": {"train": "t"}, "output_dir": "o"}).to_dict()
    for key in set(KEYS.values()):
        block, _, name = key.partition(".")
        assert block in values
        if block in ("data", "lora"):
            assert name in values[block]
    training = {key.partition(".")[2] for key in KEYS.values() if key.startswith("training.")}
    assert training <= {field.name for field in dataclasses.fields(TrainingArguments)}


@pytest.mark.parametrize(("command", "more"), [(pretrain, set()), (finetune, {"budget"})])
def test_every_flag_sets_a_key(command, more):
    others = {"context", "config", "assignments", "overwrite", *more}
    layer = {field.name for field in dataclasses.fields(DecisionConfig)}
    assert set(inspect.signature(command).parameters) - set(KEYS) - layer == others
