"""A real trained model, small enough for every run of the tests: what was proved on random weights holds for it."""

from __future__ import annotations

import copy
import importlib.util
import json
import struct
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import codehead
from codehead.conversion import run_conversion
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


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_is_read_as_it_was_written(example, tmp_path, tied):
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=12, tie_word_embeddings=tied, rms_norm_eps=1e-5,
    )  # fmt: skip
    model, path = LlamaForCausalLM(config).eval(), tmp_path / "tiny.bin"
    path.write_bytes(written(model))
    ids = torch.arange(12)[None]
    found = example.read_model(path).eval()
    assert found.config.tie_word_embeddings is tied
    torch.testing.assert_close(found(ids).logits, model(ids).logits, rtol=0, atol=0)


def written(model):
    """A model as llama2.c writes it: rows of query and key such that neighbours are turned together."""
    config, state = model.config, model.state_dict()
    tied = config.tie_word_embeddings
    shape = [config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads]
    shape += [config.num_key_value_heads, config.vocab_size * (1 if tied else -1), config.max_position_embeddings]

    def layers(name, heads=None):
        found = torch.stack([state[f"model.layers.{i}.{name}.weight"] for i in range(config.num_hidden_layers)])
        return found if heads is None else found.unflatten(1, (heads, 2, -1)).transpose(2, 3).flatten(1, 3)

    parts = [
        state["model.embed_tokens.weight"], layers("input_layernorm"),
        layers("self_attn.q_proj", config.num_attention_heads), layers("self_attn.k_proj", config.num_key_value_heads),
        layers("self_attn.v_proj"), layers("self_attn.o_proj"), layers("post_attention_layernorm"),
        layers("mlp.gate_proj"), layers("mlp.down_proj"), layers("mlp.up_proj"), state["model.norm.weight"],
        torch.zeros(2, config.max_position_embeddings, config.hidden_size // config.num_attention_heads // 2),
        *([] if tied else [state["lm_head.weight"]]),
    ]  # fmt: skip
    return struct.pack("7i", *shape) + b"".join(part.contiguous().numpy().tobytes() for part in parts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, which is not a checkpoint"),
        (bytes(1001), "1001 bytes"),
        (bytes(1000), "243 numbers, which do not fit its header"),
        (b"ak42" + bytes(996), "243 numbers, which do not fit"),
        (struct.pack("7i", 16, 24, 2, 4, 2, 20, 12) + bytes(4000), "1,000 numbers, which do not fit"),
    ],
)
def test_what_is_no_checkpoint_is_told(example, tmp_path, data, message):
    (tmp_path / "cut.bin").write_bytes(data)
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
    code = {"code": "additive", "bits": 120, "loss": "codeword", "extra_bit_tokens": 128, "extra_bits": 184}
    config = RunConfig.from_dict(
        {
            "model": str(folder),
            "output_dir": str(tmp_path / "out"),
            "data": {
                "train": str(data_dir("tinystories/stories.jsonl")), "validation_fraction": 0.1, "max_documents": 200,
            },
            "decision": {**code, "dense_rows": 21, "token_bias": True},
            "distil": {"steps": 100, "tokens": 20_000},
            "int8": True,
        }
    )  # fmt: skip
    record = run_conversion(config)
    before, after = record["before"], record["after"]
    assert before["top1"] > 0.6 and before["perplexity"] < 4.2
    assert after["bytes_in_bf16"] < 0.5 * before["bytes_in_bf16"]
    assert after["top1"] > 0.985 * before["top1"] and after["perplexity"] < 1.03 * before["perplexity"]
