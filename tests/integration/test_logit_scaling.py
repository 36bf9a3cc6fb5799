"""Models that scale or cap what their head gives: the same is looked at, started from, learnt from and folded."""

from __future__ import annotations

import pytest
import torch
from architectures import CONFIGS, MODERN, VOCAB, make, tokens
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, CohereConfig, RecurrentGemmaConfig

import codehead
from codehead.errors import ConfigurationError
from codehead.models.calibration import calibrate, text_outputs
from codehead.models.hidden import Statistics, hidden_states
from codehead.models.probe import LogitScaling, softmax_head
from codehead.training.config import Distillation
from codehead.training.distil import distil

LAYER = {"code": "itq", "bits": 60, "loss": "codeword", "token_bias": True, "dense_rows": list(range(0, 120, 7))}


def batch():
    ids = tokens(4, 12)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def stock(name):
    model = make(name, tied=False)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=2.0 if name == "granite" else 0.5)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=batch()["input_ids"], use_cache=False).logits.float()


def cohere(scale=0.25):
    torch.manual_seed(0)
    config = CohereConfig(**MODERN, logit_scale=scale, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config).eval()
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=2.0)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_what_comes_after_the_head(name):
    model, seen = stock(name), []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    found = logits(model)
    hook.remove()
    tail = LogitScaling.of(model)
    torch.testing.assert_close(tail(seen[0].float()), found, rtol=1e-5, atol=1e-5)
    assert model.get_output_embeddings() is head
    assert tail.scale == pytest.approx(0.25 if name == "granite" else 1, rel=1e-6)
    assert (tail.cap is not None) == name.startswith("gemma")


@pytest.mark.parametrize("scale", [1.001, 0.999, 1.05])
def test_a_factor_near_to_one_is_kept(scale):
    assert LogitScaling.of(cohere(scale)).scale == pytest.approx(scale, rel=1e-6)


def test_a_factor_and_its_inverse_are_told_apart():
    assert LogitScaling.of(cohere()).scale == pytest.approx(0.25)
    assert LogitScaling.of(codehead.attach(cohere(), "minrandom", bits=24)).scale == pytest.approx(0.25)


def started(model):
    hidden = hidden_states(model, [batch()], 100).float()
    return codehead.attach(
        model, **LAYER, start="old_head", statistics=Statistics.of(torch.ones(VOCAB), hidden)
    ), hidden


def divergence(model, wanted):
    found = logits(model).log_softmax(-1)
    return float(F.kl_div(found, wanted.log_softmax(-1), reduction="sum", log_target=True)) / found[..., 0].numel()


@pytest.mark.parametrize("make_model", [lambda: stock("granite"), cohere], ids=["granite", "cohere"])
def test_a_start_and_a_distillation_come_to_the_scaled_distribution(make_model):
    old = make_model()
    wanted, teacher = logits(old), softmax_head(old)
    model, hidden = started(make_model())
    first = divergence(model, wanted)
    with torch.no_grad():
        model.decision.corrections.token_bias.mul_(4)
    assert first < divergence(model, wanted)
    with torch.no_grad():
        model.decision.corrections.token_bias.div_(4)
    distil(model, teacher, hidden, Distillation(steps=120, batch_tokens=44, code_learning_rate=0.0))
    assert divergence(model, wanted) < 0.7 * first


def recurrent_gemma():
    torch.manual_seed(0)
    shape = {name: value for name, value in MODERN.items() if name != "max_position_embeddings"}
    config = RecurrentGemmaConfig(**shape, logits_soft_cap=2.0, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config).eval()
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=2.0)
    return model


def test_a_cap_that_cannot_be_switched_off_is_one():
    model, seen = recurrent_gemma(), []
    hook = model.get_output_embeddings().register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    found = logits(model)
    hook.remove()
    assert LogitScaling.of(model) == LogitScaling(1.0, 2.0)
    torch.testing.assert_close(LogitScaling.of(model)(seen[0]), found, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigurationError, match="soft-caps its logits"):
        codehead.attach(model, "one_vs_all", head="adaptive", head_params={"cutoffs": [20]})


def test_a_temperature_under_a_cap_is_refused():
    model = codehead.attach(stock("gemma2"), "one_vs_all", loss="codeword")
    with pytest.raises(ConfigurationError, match=r"soft-caps its logits at 0\.5"):
        calibrate(model, *text_outputs(model, [batch()], 100), per_bit=False)
    model = codehead.attach(stock("gemma2"), "minrandom", bits=16)
    calibrate(model, *text_outputs(model, [batch()], 100))


@pytest.mark.parametrize(
    "layer",
    [
        {"code": "one_vs_all", "head": "adaptive", "head_params": {"cutoffs": [20]}, "loss": "codeword"},
        {"code": "minrandom", "bits": 16, "loss": "codeword", "token_bias": True, "start": "old_head"},
        {"code": "minrandom", "bits": 16, "extra_bit_tokens": [1, 2, 3], "extra_bits": 8, "loss": "codeword"},
    ],
    ids=["adaptive", "start", "extra bits"],
)
def test_what_needs_weights_says_so_without_them(layer):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS["granite"](tie_word_embeddings=False))
    with pytest.raises(ConfigurationError, match=r"meta\s+device"):
        codehead.attach(model, **layer)


def test_a_capped_head_learns_under_its_cap():
    old = stock("gemma2")
    wanted, hidden = logits(old), hidden_states(old, [batch()], 100).float()
    teacher = softmax_head(old)
    model = stock("gemma2")
    low_rank = {"code": "one_vs_all", "head": "low_rank", "head_params": {"rank": 8}, "loss": "codeword"}
    codehead.attach(model, **low_rank, start="old_head")
    first = divergence(model, wanted)
    distil(model, teacher, hidden, Distillation(steps=80, batch_tokens=44))
    assert divergence(model, wanted) < 0.9 * first


def test_a_folded_model_keeps_its_posterior():
    model, _ = started(stock("granite"))
    torch.nn.init.normal_(model.decision.corrections.token_bias)
    wanted = logits(model)
    torch.testing.assert_close(logits(codehead.fold(model)), wanted, rtol=1e-4, atol=1e-4)
