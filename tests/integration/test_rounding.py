"""Weights of a decision layer in int8: close to what they were, small in a checkpoint, and the same after reloading."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import VOCAB, make, tokens
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import codehead
from codehead.errors import ConfigurationError
from codehead.evaluation.size import model_size

CORRECTED = {"loss": "codeword", "shortlist": [3, 50, 7], "token_bias": True}
LAYERS = {
    "linear": {"bits": 24},
    "linear with biases": {"bits": 24, "head_params": {"bias": True}},
    "mtl": {"bits": 16, "head": "mtl", "width": 8},
    "corrected": {"bits": 24, **CORRECTED},
    "refined": {"code": "itq", "bits": 24, **CORRECTED, "refined": [5, 6, 9], "refined_bits": 8},
    "low rank": {"code": "one_vs_all", "head": "low_rank", "head_params": {"rank": 4}, "loss": "codeword"},
}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=tokens()).logits


def coded(layer):
    model = codehead.attach(make("llama", tied=False), **layer)
    for name, weight in [*model.get_output_embeddings().named_parameters(), *model.decision.named_parameters()]:
        torch.manual_seed(len(name))
        torch.nn.init.normal_(weight)
    return model


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_every_weight_is_within_half_a_step_of_what_it_was(layer):
    model = coded(layer)
    head = model.get_output_embeddings()
    before = {name: weight.detach().clone() for name, weight in head.named_parameters()}
    assert codehead.to_int8(model) is model
    for name, old in before.items():
        path, _, leaf = name.rpartition(".")
        new = getattr(head.get_submodule(path), leaf)
        step = old.abs().amax(-1, keepdim=True) / 127
        assert torch.all((new - old).abs() <= step * 0.5001)
        assert not torch.equal(new, old)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_checkpoint_reloads_bit_for_bit(layer, tmp_path):
    model = codehead.to_int8(coded(layer))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert model_size(loaded) == model_size(model)
    with pytest.raises(ConfigurationError, match="are int8 already"):
        codehead.to_int8(loaded)


def test_the_file_holds_integers_and_the_size_counts_them(tmp_path):
    model = coded(LAYERS["corrected"])
    before = model_size(model, weight_bytes=2)
    after = model_size(codehead.to_int8(model), weight_bytes=2)
    weights = 24 * 16 + 3 * 16 + VOCAB
    scales = 24 + 3 + 1
    assert before.bytes_stored - after.bytes_stored == 2 * weights - (weights + 2 * scales)
    assert after.head_parameters == before.head_parameters + scales
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys() if name.endswith("original0")}  # noqa: SIM118
    assert len(kinds) == 3 and set(kinds.values()) == {torch.int8}


def test_half_precision_generation_and_folding(tmp_path):
    model = codehead.to_int8(coded(LAYERS["corrected"]).to(torch.bfloat16))
    expected = logits(model)
    assert model.generate(tokens(), max_new_tokens=3, do_sample=False).shape[1] == tokens().shape[1] + 3
    folded = codehead.fold(copy.deepcopy(model))
    torch.testing.assert_close(logits(folded).softmax(-1).float(), expected.softmax(-1).float(), atol=0.02, rtol=0.05)


def test_a_row_of_zeros_stays_one():
    model = coded(LAYERS["corrected"])
    torch.nn.init.zeros_(model.get_output_embeddings().rows.weight)
    codehead.to_int8(model)
    assert not model.get_output_embeddings().rows.weight.any()


def test_a_stock_model_is_refused():
    with pytest.raises(ConfigurationError, match="has no decision layer"):
        codehead.to_int8(make("llama"))


def test_offloaded_weights_are_refused():
    model = coded(LAYERS["corrected"])
    model.get_output_embeddings().to("meta")
    with pytest.raises(ConfigurationError, match="offloaded cannot be rounded"):
        codehead.to_int8(model)


def test_scales_of_frozen_weights_stay_frozen():
    model = coded(LAYERS["corrected"])
    model.lm_head.bits.requires_grad_(False)
    codehead.to_int8(model)
    asked = {name: values.requires_grad for name, values in model.lm_head.named_parameters()}
    assert asked.pop("bits.parametrizations.weight.original1") is False and all(asked.values())
