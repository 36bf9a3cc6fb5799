"""Architectures that name, tie or cap the head in their own way: attached, saved, loaded and detached all the same."""

from __future__ import annotations

import pytest
import torch
from architectures import GEMMA, MODERN, VOCAB, make, tokens
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
    conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming

import codehead
from codehead.config import ModelShape
from codehead.errors import ConfigurationError

DEEPSEEK = {**MODERN, "head_dim": 16, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
GEMMA_3N = {
    **{name: value for name, value in GEMMA.items() if name != "query_pre_attn_scalar"},
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "layer_types": ["full_attention"] * 2,
    "laurel_rank": 8,
}
ODD = {
    "deepseek_v4": DEEPSEEK,  # the head is called head.weight in files
    "gemma3n_text": GEMMA_3N,  # a soft cap that may not be None
}
LAYERS = {
    "linear": {"code": "minrandom", "bits": 24},
    "several parts": {"code": "minrandom", "bits": 24, "loss": "codeword", "dense_rows": [3, 5]},
}


def build(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **ODD[name])).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=tokens(), use_cache=False).logits


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ODD)
def test_it_comes_back_and_off_again(name, layer, tmp_path):
    model = build(name)
    before, expected = model.config.to_dict(), logits(model)
    codehead.attach(model, **LAYERS[layer])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert codehead.is_coded(again)
    assert torch.equal(logits(again), logits(model))
    codehead.detach(model)
    assert {**model.config.to_dict(), "dtype": 0} == {**before, "dtype": 0, "architectures": [type(model).__name__]}
    assert torch.equal(logits(model), expected)


TEXT = {**MODERN, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
EYES = {"depth": 1, "num_heads": 2, "hidden_size": 16, "patch_size": 14}
SEEING = {
    "qwen2_vl": {**EYES, "embed_dim": 16},
    "qwen2_5_vl": {**EYES, "out_hidden_size": 16, "intermediate_size": 32, "fullatt_block_indexes": [0]},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", SEEING)
def test_a_model_that_sees_says_for_all_its_parts_whether_it_is_tied(name, tied, tmp_path):
    config = AutoConfig.for_model(name, text_config=TEXT, vision_config=SEEING[name], tie_word_embeddings=tied)
    model = AutoModelForImageTextToText.from_config(config).eval()
    assert ModelShape.of_model(model).tied is tied
    expected = logits(model)
    codehead.attach(model, "minrandom", bits=24).save_pretrained(tmp_path)
    assert ModelShape.of_model(model).tied is tied
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(codehead.detach(model)), expected)


def test_a_head_is_found_under_its_name_in_files(tmp_path):
    codehead.attach(build("deepseek_v4"), "minrandom", bits=24).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as tensors:
        assert "head.weight" in tensors.keys()  # noqa: SIM118
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118


def test_a_soft_cap_that_may_not_be_none_changes_no_bit_logit():
    model = codehead.attach(build("gemma3n_text"), "minrandom", bits=24)
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    model.lm_head.weight.data.mul_(100)
    assert torch.equal(model.bit_logits(input_ids=tokens()), seen[0])
    assert seen[0].abs().max() > GEMMA["final_logit_softcapping"]
    with pytest.raises(ConfigurationError, match=r"float16.*bfloat16"):
        model.half()(input_ids=tokens())


def test_names_that_would_not_come_back_are_refused(monkeypatch):
    renamings = [
        WeightRenaming(source_patterns=source, target_patterns=target)
        for source, target in [(r"^other\.table", "decision.table"), (r"^decision\.table", "elsewhere")]
    ]
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda *args, **options: renamings)
    model = make("llama")
    with pytest.raises(ConfigurationError, match=r"renames tensors.*decision\.table"):
        codehead.attach(model, "minrandom", bits=24)
    assert not codehead.is_coded(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


class Twice(LlamaForCausalLM):
    """Its layers share a weight, too."""

    _tied_weights_keys = {  # noqa: RUF012
        "lm_head.weight": "model.embed_tokens.weight",
        "model.layers.1.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
    }


def shares(model):
    first, second = model.model.layers
    return first.mlp.up_proj.weight is second.mlp.up_proj.weight


def test_only_the_tie_of_the_head_is_cut(tmp_path):
    model = Twice(LlamaConfig(**MODERN, tie_word_embeddings=True)).eval()
    assert shares(model)
    codehead.attach(model, "minrandom", bits=24)
    assert list(model.all_tied_weights_keys) == ["model.layers.1.mlp.up_proj.weight"]
    model.tie_weights()
    assert shares(model)
    model.save_pretrained(tmp_path)
    again = Twice.from_pretrained(tmp_path).eval()
    assert shares(again)
    assert again.lm_head.weight.shape[0] == 24
    assert torch.equal(logits(again), logits(model))
    for coded in (model, again):
        codehead.detach(coded)
        assert coded.lm_head.weight is coded.model.embed_tokens.weight
        assert shares(coded)
