"""`convert` and `recommend`: from a stock model to a coded checkpoint, with its measurements."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from codehead.conversion import convert
from codehead.errors import ConfigurationError
from codehead.training.config import RunConfig
from codehead.training.tokenizer import train_bpe

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
        "decision": {"code": "itq", "bits": 32, "loss": "codeword", "shortlist": 10, "token_bias": True},
        "distil": {"steps": 60, "tokens": 2000, "batch_tokens": 128},
    }
    return RunConfig.from_dict({**values, **changes})


def test_the_new_head_is_close_and_the_trunk_is_the_old_one(stock, tmp_path):
    stages = []
    record = convert(
        config(stock, tmp_path / "out"), show=lambda stage, done, total: stages.append((stage, done <= total))
    )
    before, after = record["before"], record["after"]
    assert after["perplexity"] < 1.3 * before["perplexity"] and after["bytes_in_bf16"] < 0.5 * before["bytes_in_bf16"]
    assert before["tokens"] == after["tokens"] > 0
    assert list(dict.fromkeys(stage for stage, _ in stages)) == [
        "measuring the old head", "reading text", "learning the new head", "measuring the new one"
    ]  # fmt: skip
    assert all(sane for _, sane in stages)
    old, new = (AutoModelForCausalLM.from_pretrained(path) for path in (stock / "model", tmp_path / "out"))
    for name, parameter in old.model.named_parameters():
        assert torch.equal(parameter, new.model.get_parameter(name))
    assert new.config.quantization_config["design"] == "learned"
    saved = json.loads((tmp_path / "out" / "run.json").read_text())
    assert saved["status"] == "finished" and saved["after"] == after and saved["provenance"]["data"]


def test_a_finished_conversion_is_not_repeated_by_accident(stock, tmp_path):
    quick = config(stock, tmp_path / "out", distil={"steps": 2, "tokens": 200})
    convert(quick)
    with pytest.raises(ConfigurationError, match="use --overwrite"):
        convert(quick)
    convert(quick, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="holds no run"):
        convert(config(stock, tmp_path / "other"), overwrite=True)


def test_a_coded_model_is_not_converted_again(stock, tmp_path):
    convert(config(stock, tmp_path / "once", distil={"steps": 1, "tokens": 100}))
    with pytest.raises(ConfigurationError, match="has a decision layer already"):
        convert(config(stock, tmp_path / "twice", model=str(tmp_path / "once")))


def test_without_held_out_text_nothing_can_be_measured(stock, tmp_path):
    data = {"train": str(stock / "text.jsonl"), "block_size": 32}
    with pytest.raises(ConfigurationError, match="measures before and after"):
        convert(config(stock, tmp_path / "out", data=data))


def test_the_commands(stock, tmp_path, codehead):
    status, told, _ = codehead("recommend", str(stock / "model"), "--budget", "60%")
    assert status == 0 and "dense rows for" in told and "codehead convert" in told
    model, data, out = str(stock / "model"), str(stock / "text.jsonl"), str(tmp_path / "out")
    arguments = (
        "convert",
        model,
        "--data",
        data,
        "--out",
        out,
        "--budget",
        "60%",
        "--steps",
        "5",
        "--block-size",
        "32",
    )
    status, told, errors = codehead(*arguments)
    assert status == 0, errors
    assert "perplexity" in told and "old head" in told and "Saved to" in told
    status, _, errors = codehead("convert", model, "--data", data, "--out", out, "--budget", "5 per cent")
    assert status == 2 and "--budget is '5 per cent'" in errors
    status, _, errors = codehead("recommend", model, "--budget", "1%")
    assert status == 2 and "give that at least" in errors
