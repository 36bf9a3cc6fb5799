"""`convert`: from a stock model to a coded checkpoint, with its measurements."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import codehead
from codehead.boundaries import peft_warnings_hidden
from codehead.conversion import conversion_config, convert, recalibrate, run_conversion
from codehead.errors import CheckpointError, CodeheadError, ConfigurationError, DataError
from codehead.recommendation import recommend
from codehead.training.config import RunConfig
from codehead.training.data import tokenize
from codehead.training.folder import flattened, locked
from codehead.training.model import default_device, load_model
from codehead.training.run import train
from codehead.training.tokenizer import load_tokenizer, train_bpe

SEEN = [(a, b, c) for a in ("cat", "dog") for b in ("bird", "fish", "fox") for c in ("one", "two", "ten", "all")]
TEXTS = [f"the {a} sees a {b} and the {b} sees {c} of them" for a, b, c in SEEN]


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A tiny model with a peaked head, its tokenizer and text."""
    folder = tmp_path_factory.mktemp("stock")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in 4 * TEXTS))
    tokenizer = train_bpe(TEXTS, 290)
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=290, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, tie_word_embeddings=False,
        )
    )  # fmt: skip
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    model.save_pretrained(folder / "model")
    return folder


def config(stock, out, **changes):
    values = {
        "model": str(stock / "model"),
        "output_dir": str(out),
        "data": {"train": str(stock / "text.jsonl"), "validation_fraction": 0.1, "block_size": 32},
        "decision": {"code": "itq", "bits": 32, "loss": "codeword", "dense_rows": 10, "token_bias": True},
        "distil": {"steps": 60, "tokens": 2000, "batch_tokens": 128},
    }
    return RunConfig.from_dict({**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense_rows": 291}, "dense_rows=291 is not between 0 and the number of tokens 290"),
        ({"extra_bit_tokens": [290], "extra_bits": 8}, "extra_bit_tokens holds ids from 290 to 290"),
        ({"loss": "bitwise"}, "loss='bitwise' cannot train dense rows"),
        ({"decoder": "hamming", "dense_rows": 0}, "decoder='hamming' does not score tokens"),
    ],
)
def test_what_single_tokens_cannot_have_is_told_before_the_model_reads(stock, tmp_path, monkeypatch, changes, message):
    def read(*_):
        pytest.fail("the model has read text")

    monkeypatch.setattr("codehead.training.new_head.labelled_states", read)
    wanted = config(stock, tmp_path / "out")
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        run_conversion(replace(wanted, decision=replace(wanted.decision, **changes)))


def test_the_new_head_is_close_and_the_backbone_is_the_old_one(stock, tmp_path):
    stages = []
    record = run_conversion(
        config(stock, tmp_path / "out"), show=lambda stage, done, total: stages.append((stage, done <= total))
    )
    before, after = record["before"], record["after"]
    assert after["perplexity"] < 1.3 * before["perplexity"] and after["bytes_in_bf16"] < 0.5 * before["bytes_in_bf16"]
    assert before["tokens"] == after["tokens"] > 0
    assert list(dict.fromkeys(stage for stage, _ in stages)) == [
        "measuring the old head", "reading text", "starting the new head", "learning the new head",
        "measuring the new one",
    ]  # fmt: skip
    assert all(sane for _, sane in stages)
    old, new = (AutoModelForCausalLM.from_pretrained(path) for path in (stock / "model", tmp_path / "out"))
    for name, parameter in old.model.named_parameters():
        assert torch.equal(parameter, new.model.get_parameter(name))
    assert new.config.quantization_config["decision"]["code"] == "learned"
    saved = json.loads((tmp_path / "out" / "run.json").read_text())
    assert saved["status"] == "finished" and saved["after"] == after and saved["provenance"]["data"]
    assert saved["provenance"]["wall_seconds"] > 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| perplexity | {before['perplexity']:.2f} | {after['perplexity']:.2f} |" in card


@pytest.fixture
def broken(stock, tmp_path):
    def save(value):
        model = AutoModelForCausalLM.from_pretrained(stock / "model")
        torch.nn.init.constant_(model.model.norm.weight, value)
        model.save_pretrained(shutil.copytree(stock / "model", tmp_path / "broken"))
        return str(tmp_path / "broken")

    return save


@pytest.mark.parametrize(
    ("value", "message"),
    [(torch.nan, r"broken' holds NaN in model\.norm\.weight"), (torch.inf, "broken' has no finite perplexity")],
)
def test_a_ruined_model_is_named_before_anything_is_learnt(stock, tmp_path, monkeypatch, broken, value, message):
    monkeypatch.setattr("codehead.conversion.fit_decision_layer", None)  # a call would fail
    with pytest.raises(CodeheadError, match=message):
        run_conversion(config(stock, tmp_path / "out", model=broken(value)))


def test_a_mistake_leaves_the_run_that_it_would_have_overwritten(stock, tmp_path, broken):
    run_conversion(config(stock, tmp_path / "out", distil={"steps": 2, "tokens": 500}))
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(ConfigurationError, match="no finite perplexity"):
        run_conversion(config(stock, tmp_path / "out", model=broken(torch.inf)), overwrite=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_too_little_text_to_calibrate_on_is_told_before_anything_is_measured(stock, tmp_path, monkeypatch):
    monkeypatch.setattr("codehead.conversion.evaluate", None)  # a call would fail
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:4]))
    data = {"train": str(tmp_path / "few.jsonl"), "validation": str(stock / "text.jsonl"), "block_size": 32}
    with pytest.raises(DataError, match="--no-calibrate"):
        run_conversion(config(stock, tmp_path / "out", data=data, calibrate={"per_bit": False}))


def test_a_text_to_calibrate_on_of_less_than_a_block_is_told_before_anything_is_learnt(stock, tmp_path, monkeypatch):
    monkeypatch.setattr("codehead.conversion.fit_decision_layer", None)  # a call would fail
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:12]))
    data = {"train": str(tmp_path / "few.jsonl"), "validation": str(stock / "text.jsonl"), "block_size": 64}
    with pytest.raises(DataError, match="the text to calibrate on has"):
        run_conversion(config(stock, tmp_path / "out", data=data, calibrate={"per_bit": False}))


def test_blocks_are_as_long_as_the_model_takes_and_validation_text_may_be_given(stock, tmp_path, codehead):
    text, changes = str(stock / "text.jsonl"), ("--set", f"data.validation={stock / 'text.jsonl'}")
    quick = ("--budget", "80%", "--steps", "2", "--tokens", "200", "--set", "distil.learning_rate=1e-4")
    status, _, errors = codehead(
        "convert", stock / "model", "--data", text, "--out", tmp_path / "out", *quick, *changes
    )
    assert status == 0, errors
    told = json.loads((tmp_path / "out" / "run.json").read_text())["config"]["data"]
    assert (told["block_size"], told["validation_fraction"], told["validation"]) == (64, 0.0, text)
    assert load_model(str(tmp_path / "out")).decision.packed


@pytest.mark.parametrize(
    ("name", "reason"), [("absent/folder", "there is no such folder"), ("empty", r"holds none \(no config\.json\)")]
)
def test_a_model_that_is_not_there_is_told_so(stock, tmp_path, codehead, name, reason):
    (tmp_path / "empty").mkdir()
    status, _, errors = codehead("recommend", str(tmp_path / name), "--budget", "5%")
    assert status == 2 and re.search(reason, " ".join(errors.split()))


def test_the_folder_of_the_model_is_never_written_to(stock, tmp_path):
    kept = shutil.copytree(stock / "model", tmp_path / "model")
    own = {**config(stock, kept).to_dict(), "model": f"{kept}/."}
    for overwrite in (False, True):
        with pytest.raises(ConfigurationError, match="holds the model that this run reads"):
            run_conversion(RunConfig.from_dict(own), overwrite=overwrite)
        with pytest.raises(ConfigurationError, match="holds the model that this run reads"):
            train(RunConfig.from_dict(own), overwrite=overwrite, progress=False)
    AutoModelForCausalLM.from_pretrained(kept)


def test_a_checkpoint_of_the_run_that_is_overwritten_is_no_model_for_it(stock, tmp_path):
    inner = shutil.copytree(stock / "model", tmp_path / "out" / "checkpoints" / "checkpoint-4")
    (tmp_path / "out" / "run.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="holds the model that this run reads"):
        run_conversion(config(stock, tmp_path / "out", model=str(inner)), overwrite=True)
    AutoModelForCausalLM.from_pretrained(inner)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_mistake_in_a_new_folder_leaves_nothing_there(stock, tmp_path, overwrite):
    wanted = config(stock, tmp_path / "out")
    with pytest.raises(ConfigurationError, match="dense_rows=1000"):
        run_conversion(replace(wanted, decision=replace(wanted.decision, dense_rows=1000)), overwrite=overwrite)
    run_conversion(wanted)


def test_what_cannot_be_calibrated_is_told_before_the_new_head_learns(stock, tmp_path, monkeypatch):
    monkeypatch.setattr("codehead.training.new_head.distil", None)  # a call would fail
    low_rank = {"code": "one_vs_all", "head": "low_rank", "head_params": {"rank": 4}, "loss": "codeword"}
    with pytest.raises(ConfigurationError, match="has as many bits as tokens"):
        run_conversion(config(stock, tmp_path / "out", decision=low_rank, calibrate={"per_bit": True}))


@pytest.mark.parametrize("tokens", [50, 300])
def test_no_more_text_is_learnt_from_than_asked_for(stock, tmp_path, monkeypatch, tokens):
    seen = []
    monkeypatch.setattr("codehead.training.new_head.distil", lambda *args: seen.append((len(args[2]), len(args[6]))))
    run_conversion(config(stock, tmp_path / "out", distil={"steps": 2, "tokens": tokens}))
    assert seen == [(tokens, tokens)]


def test_a_finished_conversion_is_not_repeated_by_accident(stock, tmp_path):
    quick = config(stock, tmp_path / "out", distil={"steps": 2, "tokens": 200})
    run_conversion(quick)
    with pytest.raises(ConfigurationError, match="use --overwrite"):
        run_conversion(quick)
    run_conversion(quick, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="holds no run"):
        run_conversion(config(stock, tmp_path / "other"), overwrite=True)


def test_a_coded_model_is_not_converted_again(stock, tmp_path):
    run_conversion(config(stock, tmp_path / "once", distil={"steps": 1, "tokens": 100}))
    with pytest.raises(ConfigurationError, match="has a decision layer already"):
        run_conversion(config(stock, tmp_path / "twice", model=str(tmp_path / "once")))


def test_what_a_conversion_does_not_do_is_refused(stock, tmp_path):
    with pytest.raises(ConfigurationError, match="decision is missing; give one"):
        run_conversion(config(stock, tmp_path / "out", decision=None, distil=None))
    run_conversion(config(stock, tmp_path / "once", distil={"steps": 1, "tokens": 100}))
    given = {"model": str(tmp_path / "once"), "distil": None, "calibrate": {"per_bit": True}}
    with pytest.raises(ConfigurationError, match="decision is given, but recalibrate scales the bits alone"):
        recalibrate(config(stock, tmp_path / "twice", **given))


def test_apples_accelerator_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for kind, used in (("mps", "cpu"), ("cuda", "cuda")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda kind=kind: torch.device(kind))
        assert default_device().type == used


def test_without_held_out_text_nothing_can_be_measured(stock, tmp_path):
    data = {"train": str(stock / "text.jsonl"), "block_size": 32}
    with pytest.raises(ConfigurationError, match="measured before and after"):
        run_conversion(config(stock, tmp_path / "out", data=data))


def test_a_conversion_computes_where_the_run_does(stock, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("codehead.training.model.default_device", lambda: asked.append(1) or torch.device("cpu"))
    distil = {"steps": 2, "tokens": 200}
    run_conversion(config(stock, tmp_path / "cpu", distil=distil, training={"use_cpu": True}))
    assert not asked
    run_conversion(config(stock, tmp_path / "any", distil=distil))
    assert asked


# Interruptions


def small_batches(stock, out):
    distil = {"steps": 60, "tokens": 2000, "own_text": 0.1, "batch_tokens": 128, "backbone_steps": 60}
    return config(stock, out, distil=distil, calibrate={"tokens": 300}, training={"per_device_train_batch_size": 2})


@pytest.fixture(scope="module")
def whole(stock, tmp_path_factory):
    """A conversion that was never stopped: its folder and record."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("codehead.training.new_head.WRITERS", 2)
        return out, run_conversion(small_batches(stock, out))


def stop_at(stage, call, error):
    """A `show` that raises at a stage when it is called for it so many times."""
    calls = []

    def show(current, done, total):
        calls.append(current)
        if calls.count(stage) == call and current == stage:
            raise error

    return show


STOPS = {  # in which call of a stage it is stopped; where it goes on after Ctrl-C, and after it was killed
    "measuring the old head": (2, ("measuring the old head", 2), ("measuring the old head", 2)),
    "writing text": (2, ("writing text", 2), ("writing text", 2)),
    "reading text": (2, ("reading text", 93), ("reading text", 93)),
    "learning the new head": (55, ("learning the new head", 56), ("learning the new head", 51)),
    "learning with the backbone": (55, ("learning with the backbone", 56), ("learning with the backbone", 51)),
    "calibrating": (3, ("reading other text", 62), ("reading other text", 62)),
    "measuring the new one": (2, ("measuring the new one", 2), ("measuring the new one", 2)),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit], ids=["Ctrl-C", "killed"])
@pytest.mark.parametrize("stage", STOPS)
def test_a_conversion_that_was_stopped_goes_on_where_it_was(stock, tmp_path, whole, stage, error, monkeypatch):
    monkeypatch.setattr("codehead.training.new_head.READ_BATCHES", 1)
    monkeypatch.setattr("codehead.training.new_head.WRITERS", 2)
    call, *where = STOPS[stage]
    out, seen = tmp_path / "out", []
    with pytest.raises(error):
        run_conversion(small_batches(stock, out), show=stop_at(stage, call, error))
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    record = run_conversion(small_batches(stock, out), show=lambda stage, done, total: seen.append((stage, done)))
    assert next(found for found in seen if found[0] != "starting the new head") == where[error is SystemExit]
    for key in ("before", "after", "calibration"):
        assert record[key] == whole[1][key]
    assert (out / "model.safetensors").read_bytes() == (whole[0] / "model.safetensors").read_bytes()
    assert not (out / "conversion").exists()


def failing(error):
    def fail(*args, **kwargs):
        raise error("stopped here")

    return fail


@pytest.mark.parametrize("place", ["folder._order", "loop.Stages.remove", "folder.RunFolder.finish"])
def test_a_conversion_that_was_stopped_while_it_saves_ends_clean(stock, tmp_path, monkeypatch, place):
    quick = config(stock, tmp_path / "out", distil={"steps": 2, "tokens": 200})
    whole = run_conversion(replace(quick, output_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patched:
        patched.setattr(f"codehead.training.{place}", failing(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_conversion(quick)
    record = run_conversion(quick)
    assert (record["before"], record["after"]) == (whole["before"], whole["after"])
    folders = tmp_path / "out", tmp_path / "whole"
    assert {path.name for path in folders[0].iterdir()} == {path.name for path in folders[1].iterdir()}
    assert (folders[0] / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()


def test_what_a_finished_conversion_has_left_behind_is_removed(stock, tmp_path):
    quick = config(stock, tmp_path / "out", distil={"steps": 2, "tokens": 200})
    run_conversion(quick)
    left = tmp_path / "out" / "conversion"
    left.mkdir()
    (left / "text-0.safetensors").write_bytes(b"gigabytes")
    with pytest.raises(ConfigurationError, match="finished"):
        run_conversion(quick)
    assert not left.exists()


def test_two_conversions_do_not_share_a_folder(stock, tmp_path):
    quick = config(stock, tmp_path / "out", distil={"steps": 2, "tokens": 200})
    with locked(tmp_path / "out"), pytest.raises(ConfigurationError, match=r"another command is using '.*out'"):
        run_conversion(quick)
    run_conversion(quick)


def stopped(stock, out, stage="learning the new head", **changes):
    with pytest.raises(KeyboardInterrupt):
        run_conversion(config(stock, out, **changes), show=stop_at(stage, 5, KeyboardInterrupt))


def test_a_conversion_that_was_stopped_is_not_gone_on_with_in_another_way(stock, tmp_path):
    stopped(stock, tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"distil\.steps is 61, was 60; .*--overwrite"):
        run_conversion(config(stock, tmp_path / "out", distil={"steps": 61, "tokens": 2000, "batch_tokens": 128}))
    assert (tmp_path / "out" / "conversion" / "distillation.safetensors").exists()
    run_conversion(config(stock, tmp_path / "out", distil={"steps": 2, "tokens": 200}), overwrite=True)
    assert not (tmp_path / "out" / "conversion").exists()


CHANGES = {
    "tokens": lambda old: train_bpe(["zebra zebra apple apple quince"] * 50, 280),
    "template": lambda old: setattr(old, "chat_template", "{{ messages }}") or old,
    "special": lambda old: setattr(old, "pad_token", "the") or old,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_conversion_does_not_go_on_with_another_tokenizer(stock, tmp_path, change):
    model = str(shutil.copytree(stock / "model", tmp_path / "model"))
    stopped(stock, tmp_path / "out", model=model)
    change(load_tokenizer(model)).save_pretrained(model)
    with pytest.raises(ConfigurationError, match=r"began with the tokenizer .* it has changed since"):
        run_conversion(config(stock, tmp_path / "out", model=model))


def test_a_conversion_goes_on_that_has_no_record_of_its_tokenizer(stock, tmp_path):
    stopped(stock, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    del record["provenance"]["tokenizer"]
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    seen = []
    run_conversion(config(stock, tmp_path / "out"), show=lambda *told: seen.append(told))
    assert ("learning the new head", 1, 60) not in seen


def test_what_was_kept_of_another_code_is_refused(stock, tmp_path, monkeypatch):
    stopped(stock, tmp_path / "out")
    monkeypatch.setattr("codehead.codes.additive.fit_rotation", lambda components, rotation, *_: rotation)
    with pytest.raises(CheckpointError, match="begun by another version of codehead"):
        run_conversion(config(stock, tmp_path / "out"))


def test_a_kept_file_that_is_damaged_is_named(stock, tmp_path):
    stopped(stock, tmp_path / "out")
    kept = tmp_path / "out" / "conversion" / "distillation.safetensors"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match=r"distillation\.safetensors' is damaged"):
        run_conversion(config(stock, tmp_path / "out"))
    kept.write_bytes(whole)
    run_conversion(config(stock, tmp_path / "out"))


def test_a_mistake_that_comes_to_light_late_does_not_stand_in_the_way(stock, tmp_path):
    with pytest.raises(ConfigurationError, match="did you mean 'itq'"):
        run_conversion(config(stock, tmp_path / "out", decision={"code": "itk", "bits": 32}))
    run_conversion(config(stock, tmp_path / "out", distil={"steps": 2, "tokens": 200}))


# Calibration


def test_what_is_calibrated_on_is_neither_learnt_from_nor_measured(stock, tmp_path, monkeypatch):
    texts = []

    def noted(rows, *arguments):
        texts.append(set(rows["text"]))
        return tokenize(rows, *arguments)

    monkeypatch.setattr("codehead.training.data.tokenize", noted)
    lines = [json.dumps({"text": f"{i} {text} {i}"}) for i, text in enumerate(4 * TEXTS)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    data = {"train": str(tmp_path / "text.jsonl"), "validation_fraction": 0.1, "block_size": 32}
    run_conversion(config(stock, tmp_path / "out", data=data, calibrate={}, distil={"steps": 2, "tokens": 200}))
    measured, calibrated_on, learnt, *_ = texts
    assert len(measured) == 10 and len(calibrated_on) == 9 and len(learnt) == 77
    assert not measured & learnt and not measured & calibrated_on and not learnt & calibrated_on


def test_a_coded_checkpoint_is_calibrated_and_nothing_else_changes(stock, tmp_path):
    layer = {"code": "minrandom", "bits": 100, "seed": 1}
    run_conversion(config(stock, tmp_path / "coded", decision=layer, distil={"steps": 1, "tokens": 100}))
    old = AutoModelForCausalLM.from_pretrained(tmp_path / "coded")
    with torch.no_grad():
        old.lm_head.weight.mul_(3)
    old.save_pretrained(tmp_path / "coded")
    wanted = config(
        stock, tmp_path / "out", model=str(tmp_path / "coded"), decision=None, distil=None, calibrate={"tokens": 2000}
    )
    record = recalibrate(wanted)
    assert record["after"]["perplexity"] < 0.9 * record["before"]["perplexity"]
    assert record["after"]["bytes_in_bf16"] == record["before"]["bytes_in_bf16"]
    new = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    changed = {name for name, values in old.state_dict().items() if not torch.equal(values, new.state_dict()[name])}
    assert changed == {"lm_head.weight"}
    scales = torch.tensor(record["calibration"]["scales"])
    torch.testing.assert_close(new.lm_head.weight, old.lm_head.weight * scales.unsqueeze(1))
    with pytest.raises(ConfigurationError, match="calibrate is missing"):
        recalibrate(replace(wanted, calibrate=None, output_dir=str(tmp_path / "other")))
    with pytest.raises(ConfigurationError, match="has no decision layer to calibrate"):
        recalibrate(replace(wanted, model=str(stock / "model"), output_dir=str(tmp_path / "other")))


def test_text_too_short_to_set_some_aside_is_refused(stock, tmp_path):
    data = {"train": str(stock / "text.jsonl"), "max_documents": 5, "validation_fraction": 0.2, "block_size": 8}
    with pytest.raises(DataError, match="of 4 training documents, which is none"):
        run_conversion(config(stock, tmp_path / "out", data=data, calibrate={}))


def test_the_commands(stock, tmp_path, codehead):
    model, data, out = str(stock / "model"), str(stock / "text.jsonl"), str(tmp_path / "out")
    blocks = ("--block-size", "32")
    status, told, errors = codehead(
        "convert", model, "--data", data, "--out", out, "--budget", "60%", "--steps", "5", "--backbone-steps", "2",
        *blocks, "--own-text", "0.2", "--set", "distil.batch_tokens=64", "--set", "lora.r=2",
        "--set", "distil.learning_rate=1e-4",
    )  # fmt: skip
    assert status == 0, errors
    described = json.loads((Path(out) / "run.json").read_text())["config"]
    learning = described["distil"]
    assert (learning["batch_tokens"], learning["own_text"], described["lora"]["r"]) == (64, 0.2, 2)
    status, _, errors = codehead("convert", model, "--data", data, "--out", f"{out}-2", "--own-text", "1")
    assert status == 2 and "distil.own_text is 1.0; some text must be yours" in errors
    wrong = ("--budget", "60%", "--set", "distil.stepz=4")
    status, _, errors = codehead("convert", model, "--data", data, "--out", f"{out}-2", *wrong)
    assert status == 2 and "unknown key 'distil.stepz'" in errors
    assert "perplexity" in told and "old head" in told and "Saved to" in told
    arguments = ("calibrate", out, "--data", data, "--out", str(tmp_path / "calibrated"), *blocks)
    status, told, errors = codehead(*arguments, "--temperature")
    assert status == 0, errors
    assert "perplexity" in told and "before" in told and "other tokens" in told
    status, _, errors = codehead("calibrate", model, "--data", data, "--out", str(tmp_path / "stock"), *blocks)
    assert status == 2 and "has no decision layer to calibrate" in errors
    other = ("--out", f"{out}-2", "--budget", "60%", "--set", "decision.int4=true")
    status, _, errors = codehead("convert", model, "--data", data, *other)
    assert status == 2 and "int4 is true, but weights is int8; omit one" in errors
    for unread, message in (("5 per cent", "budget is '5 per cent'"), ("", "--budget is empty")):
        status, _, errors = codehead("convert", model, "--data", data, "--out", out, "--budget", unread)
        assert status == 2 and message in errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.learning_rate": 1e-4}, "training.learning_rate is set, .* set distil.learning_rate"),
        ({"head_learning_rate": 1e-4}, "head_learning_rate is set, .* set distil.learning_rate"),
        ({"training": {"use_cpu": True, "max_steps": 7}}, "training.max_steps is set, .* set distil.steps"),
        ({"training.bf16": False}, "training.bf16 is set, but convert does not read it: omit it"),
        ({"adapt": "head"}, "adapt is set, .* distil.backbone_steps"),
        ({"decision.start": "random"}, "decision.start is set, .* starts near the old one"),
        ({"lora.dropout": 0.1}, "lora.dropout is set"),
        ({"data.test": "text.txt"}, "data.test is set"),
        ({"training.learning_rat": 1}, "did you mean 'learning_rate'"),
    ],
)
def test_a_key_that_a_conversion_does_not_read_is_refused(stock, tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        convert(str(stock / "model"), str(stock / "text.jsonl"), out=tmp_path / "out", changes=changes)
    assert not list(tmp_path.iterdir())


def test_the_help_of_set_names_a_key_that_a_conversion_reads(stock, codehead):
    ((key, value),) = re.findall(r"(\w+\.\w+)=(\w+)", codehead("convert", "--help")[1])
    changed = conversion_config("a", "b", "c", recommend(str(stock / "model")), changes={key: value})
    assert dict(flattened(changed.to_dict()))[key] == value


def test_a_length_can_be_converted_to(stock, tmp_path, codehead):
    model, data, out = str(stock / "model"), str(stock / "text.jsonl"), str(tmp_path / "out")
    status, _, errors = codehead(
        "convert", model, "--data", data, "--out", out, "--bits", "12", "--steps", "2", "--block-size", "32",
        "--set", "decision.dense_rows=3",
    )  # fmt: skip
    assert status == 0 and "--set decision.dense_rows changes that" in errors
    assert AutoModelForCausalLM.from_pretrained(out).decision.table.length == 12


# From Python


QUICK = {"steps": 5, "tokens": 500, "block_size": 32}


def in_memory(stock):
    return LlamaForCausalLM.from_pretrained(stock / "model"), load_tokenizer(str(stock / "model"))


def test_a_folder_is_converted_within_a_budget(stock, tmp_path):
    found = convert(str(stock / "model"), str(stock / "text.jsonl"), budget="60%", out=tmp_path / "out", **QUICK)
    assert codehead.is_coded(found.model) and found.model.decision.packed
    assert found.record["after"]["bytes_in_bf16"] < 0.7 * found.record["before"]["bytes_in_bf16"]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(values, found.model.state_dict()[name]) for name, values in saved.state_dict().items())
    assert json.loads((tmp_path / "out" / "run.json").read_text())["after"] == found.record["after"]


def test_a_tilde_is_the_home(stock, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "stock").symlink_to(stock)
    found = convert("~/stock/model", "~/stock/text.jsonl", budget="60%", out="~/out", **QUICK)
    assert codehead.is_coded(found.model) and (tmp_path / "out" / "run.json").exists()


def test_a_model_in_memory_and_a_list_of_documents(stock, tmp_path):
    """They give the numbers of the same model and text in files. The model stays; nothing lies beside the folder."""
    files = convert(stock / "model", str(stock / "text.jsonl"), bits=16, out=tmp_path / "files", **QUICK)
    model, tokenizer = in_memory(stock)
    found = convert(model, 4 * TEXTS, bits=16, tokenizer=tokenizer, out=tmp_path / "memory", **QUICK)
    assert found.model.decision.table.length == 16 and not codehead.is_coded(model)
    assert (found.record["before"], found.record["after"]) == (files.record["before"], files.record["after"])
    assert {path.name for path in tmp_path.iterdir()} == {"files", "memory"}


def test_what_was_in_memory_when_it_was_stopped_goes_on(stock, tmp_path):
    model, tokenizer = in_memory(stock)
    options = {"speed": "1.2x", "tokenizer": tokenizer, **QUICK, "steps": 30}
    whole = convert(model, 4 * TEXTS, out=tmp_path / "whole", **options)
    stop, seen = stop_at("learning the new head", 20, KeyboardInterrupt), []
    with pytest.raises(KeyboardInterrupt):
        convert(model, 4 * TEXTS, out=tmp_path / "out", show=stop, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}
    with pytest.raises(ConfigurationError, match="a data file has changed"):
        convert(model, 3 * TEXTS, out=tmp_path / "out", **options)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_output_embeddings().weight[0, 0] += 1
    with pytest.raises(ConfigurationError, match=r"began with the weights .* the model has changed since"):
        convert(other, 4 * TEXTS, out=tmp_path / "out", **options)
    found = convert(model, 4 * TEXTS, out=tmp_path / "out", show=lambda *told: seen.append(told), **options)
    assert ("learning the new head", 1, 30) not in seen
    assert (found.record["before"], found.record["after"]) == (whole.record["before"], whole.record["after"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "text has 0 documents"),
        (["", ""], "text has 2 documents, all of them empty"),
        (["a", None], r"text\[1\] is NoneType; give a list of strings"),
        ([{"text": "a"}], r"text\[0\] is dict"),
        (None, "text is NoneType; give a list of strings"),
        ({"text": TEXTS}, "text is dict"),
        (["\ud800"] * 40, "line 1 of text holds half of a surrogate pair"),
    ],
)
def test_a_text_in_memory_that_cannot_be_used_is_named(stock, tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        convert(str(stock / "model"), text, out=tmp_path / "out", **QUICK)
    assert not list(tmp_path.iterdir())


def test_a_model_in_memory_that_cannot_be_used_is_named(stock, tmp_path):
    model, tokenizer = in_memory(stock)
    adapters = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    inside = copy.deepcopy(model)
    inside.add_adapter(adapters)
    with peft_warnings_hidden():
        adapted = get_peft_model(copy.deepcopy(model), adapters)
    for unmerged in (adapted, inside):
        with pytest.raises(ConfigurationError, match="merge them with PeftModel"):
            convert(unmerged, TEXTS, tokenizer=tokenizer, out=tmp_path / "out")
    with pytest.raises(ConfigurationError, match="model is NoneType; give a hub id"):
        convert(None, TEXTS, tokenizer=tokenizer, out=tmp_path / "out")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"^model in memory holds NaN in lm_head"):
        convert(model, TEXTS, tokenizer=tokenizer, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
    convert(adapted.merge_and_unload(), 4 * TEXTS, tokenizer=tokenizer, out=tmp_path / "out", **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "tokenizer is None, but the model is in memory"),
        ({"tokenizer": "gpt2"}, "tokenizer is 'gpt2', but the model is in memory"),
        ({"budget": "5%", "bits": 16}, "give one of budget, bits and speed, not budget and bits"),
        ({"budget": 2}, "budget is 2; give a share"),
        ({"stepz": 3}, "stepz"),
        ({"block_size": 0}, "data.block_size is 0; give a whole number of at least 2"),
    ],
)
def test_what_cannot_be_converted_leaves_nothing(stock, tmp_path, options, message):
    model, tokenizer = in_memory(stock)
    given = {"tokenizer": tokenizer, **options} if options else {}
    with pytest.raises((ConfigurationError, TypeError), match=message):
        convert(model, TEXTS, out=tmp_path / "a" / "out", **given)
    with pytest.raises(ConfigurationError, match="tokenizer is given, but model"):
        convert("some/model", TEXTS, tokenizer=tokenizer, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigurationError, match="has a decision layer already"):
        convert(codehead.attach(model), TEXTS, tokenizer=tokenizer, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
