"""`codehead screen` and `codehead doctor` on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from codehead.screening import build
from codehead.training.folder import LOCK, locked
from codehead.training.tokenizer import train_bpe

OPTIONS = ("--recall", "0.9", "--positions", "200", "--bits", "64")


@pytest.fixture
def written(monkeypatch):
    monkeypatch.setattr(build, "WRITTEN", 20)


def test_screen_saves_a_model_that_says_what_it_promises(place, tmp_path, codehead, written):
    out = tmp_path / "screened"
    out.mkdir()
    (out / "run.json").write_text("{}")  # of another model
    status, output, _ = codehead("screen", place / "model", "--out", out, "--overwrite", *OPTIONS)
    assert status == 0
    assert "recall at least 90.000%" in output
    assert {build.HIDDEN, "run.json"}.isdisjoint(path.name for path in out.iterdir())
    kept = json.loads((out / "config.json").read_text())["quantization_config"]["screening"]
    assert kept["promised"] == 0.9
    assert kept["calibration_positions"] == 100
    model, stock = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out, place / "model"))
    ids = AutoTokenizer.from_pretrained(out)("the", return_tensors="pt").input_ids
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), stock.generate(ids, **options))
    status, output, _ = codehead("doctor", out)
    assert status == 0
    assert "screened, mode='fast', bits=64" in output
    status, output, _ = codehead("generate", out, "--prompt", "the", "--max-new-tokens", "3")
    assert status == 0


def test_screen_with_text_in_exact_mode(place, tmp_path, codehead):
    arguments = ("--data", place / "text.txt", "--mode", "exact", "--positions", "200")
    status, output, _ = codehead("screen", place / "model", "--out", tmp_path / "exact", *arguments)
    assert status == 0
    assert "The dense head decides wherever another token cannot be excluded" in output


def test_a_stopped_screening_goes_on_from_its_hidden_states(place, tmp_path, codehead, written, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "screened"
    with monkeypatch.context() as patch:
        patch.setattr(build, "screen", stop)
        status, _, errors = codehead("screen", place / "model", "--out", out, *OPTIONS)
    assert status == 130
    assert "run the same command again" in errors
    with monkeypatch.context() as patch:
        patch.setattr(build, "hidden_states", stop)
        assert codehead("screen", place / "model", "--out", out, *OPTIONS)[0] == 0


OTHER = {
    "another file": (("--data", "other.jsonl"), None, "data is 'other.jsonl', was 'text.jsonl'"),
    "another field": (("--text-field", "b"), None, "text_field is 'b', was 'a'"),
    "a changed file": ((), "text.jsonl", "files is"),
    "other weights": ((), "model/model.safetensors", "weights is"),
    "another tokenizer": ((), "model/tokenizer.json", "tokenizer is"),
}


@pytest.mark.parametrize("case", OTHER)
def test_hidden_states_of_something_else_are_refused(case, place, tmp_path, codehead, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "model", "model")
    text = (place / "text.txt").read_text()
    for name in ("text.jsonl", "other.jsonl"):
        Path(name).write_text(json.dumps({"a": text, "b": text}))
    options, changed, message = OTHER[case]
    arguments = ["screen", "model", "--out", "out", *OPTIONS, "--data", "text.jsonl", "--text-field", "a"]
    with monkeypatch.context() as patch:
        patch.setattr(build, "screen", stop)
        assert codehead(*arguments)[0] == 130
    if changed == "text.jsonl":
        Path(changed).write_text(json.dumps({"a": text[::-1]}))
    elif changed == "model/tokenizer.json":
        train_bpe([text[::-1]], 270).save_pretrained("model")
    elif changed is not None:
        shutil.copy(place / "short" / "model.safetensors", changed)
        shutil.copy(place / "short" / "config.json", "model/config.json")
    status, _, errors = codehead(*arguments, *options)
    assert status == 2
    assert f"holds hidden states of something else: {message}" in errors


def test_two_commands_do_not_screen_into_one_folder(place, tmp_path, codehead, written):
    out = tmp_path / "screened"
    with locked(out):
        status, _, errors = codehead("screen", place / "model", "--out", out, *OPTIONS)
    assert status == 2
    assert "another command is using" in errors
    out.mkdir()
    (out / LOCK).touch()  # of a process that was killed
    assert codehead("screen", place / "model", "--out", out, *OPTIONS)[0] == 0
    assert not (out / LOCK).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--positions", "200"), "give at least 2,995 of them"), (("--mode", "quick"), "choose one of fast, exact")],
    ids=["too little text", "unknown mode"],
)
def test_what_is_impossible_is_refused_before_the_work(arguments, message, place, tmp_path, codehead, monkeypatch):
    monkeypatch.setattr(build, "hidden_states", None)
    status, _, errors = codehead("screen", place / "model", "--out", tmp_path, *arguments)
    assert status == 2
    assert message in errors


def test_doctor_tells_of_coded_and_stock_models(place, coded_folder, codehead):
    status, output, _ = codehead("doctor", coded_folder)
    assert status == 0
    assert "coded, decoded by plain: 272 tokens are scored as fast as scanned" in output
    assert "FAISS" in output
    assert "stock" in codehead("doctor", place / "model")[1]
