"""A real trained model, small enough for every run of the tests: what was proved on random weights holds for it."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import codehead
from codehead.conversion import convert
from codehead.training.config import RunConfig


@pytest.fixture(scope="module")
def example():
    """`examples/llama2c.py` as a module."""
    path = Path(__file__).parents[2] / "examples" / "llama2c.py"
    spec = importlib.util.spec_from_file_location("llama2c", path)
    module = sys.modules["llama2c"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(example, data_dir, tmp_path_factory):
    """The model, saved by the example's own command."""
    source, out = data_dir("stories260K"), tmp_path_factory.mktemp("llama2c") / "model"
    with pytest.MonkeyPatch.context() as patch:
        files = [str(source / name) for name in ("stories260K.bin", "tok512.bin")]
        patch.setattr(sys, "argv", ["llama2c.py", *files, "--out", str(out)])
        example.main()
    return out


@pytest.fixture(scope="module")
def wanted(data_dir):
    """What llama2.c makes of it at temperature 0: `expected`, a text, and `greedy_token_ids`."""
    return json.loads((data_dir("stories260K") / "greedy200.json").read_text())


def greedy(model, count):
    return model.eval().generate(torch.tensor([[1]]), max_new_tokens=count - 1, do_sample=False)[0].tolist()


def test_the_model_says_what_it_says_in_llama2c(folder, wanted):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = wanted["greedy_token_ids"]
    assert greedy(model, len(ids)) == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == wanted["expected"]
    assert tokenizer(wanted["expected"]).input_ids == ids


@pytest.mark.parametrize(
    ("length", "message"),
    [(1_056_140, "264,028 numbers, which do not fit its header"), (1001, "1001 bytes"), (0, "0 bytes, which are no")],
)
def test_a_checkpoint_that_is_cut_off_is_told(example, data_dir, tmp_path, length, message):
    whole = (data_dir("stories260K") / "stories260K.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[:length])
    with pytest.raises(ValueError, match=rf"cut\.bin' holds {message}"):
        example.read_model(tmp_path / "cut.bin")


def test_one_vs_all_says_the_same_and_so_does_its_checkpoint(folder, wanted, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    codehead.attach(model, "one_vs_all", loss="codeword", start="old_head")
    ids = wanted["greedy_token_ids"]
    assert greedy(model, len(ids)) == ids
    codehead.to_int8(model)
    model.save_pretrained(tmp_path)
    assert greedy(AutoModelForCausalLM.from_pretrained(tmp_path), 50) == ids[:50]


def test_a_detached_model_says_the_same(folder, wanted):
    model = AutoModelForCausalLM.from_pretrained(folder)
    whole = copy.deepcopy(model)
    codehead.attach(model, "additive", bits=32, loss="codeword", token_bias=True, start="old_head")
    codehead.detach(model)
    for name, values in whole.state_dict().items():
        assert torch.equal(values, model.state_dict()[name])


def test_half_of_the_bytes_keeps_nearly_all_of_it(folder, data_dir, tmp_path):
    code = {"code": "additive", "bits": 120, "loss": "codeword", "refined": 128, "refined_bits": 184}
    config = RunConfig.from_dict(
        {
            "model": str(folder),
            "output_dir": str(tmp_path / "out"),
            "data": {
                "train": str(data_dir("tinystories/stories.jsonl")), "validation_fraction": 0.1, "max_documents": 200,
            },
            "decision": {**code, "shortlist": 21, "token_bias": True},
            "distil": {"steps": 100, "tokens": 20_000},
            "int8": True,
        }
    )  # fmt: skip
    record = convert(config)
    before, after = record["before"], record["after"]
    assert before["top1"] > 0.6 and before["perplexity"] < 4.2
    assert after["bytes_in_bf16"] < 0.5 * before["bytes_in_bf16"]
    assert after["top1"] > 0.985 * before["top1"] and after["perplexity"] < 1.03 * before["perplexity"]
