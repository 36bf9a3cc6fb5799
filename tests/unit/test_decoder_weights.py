"""A decoder's fitted weights are part of the decision layer: they are saved, and come back."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

import codehead
from codehead.codes import build
from codehead.decoding import DECODERS, Terms
from codehead.decoding.soft_bits import fit_sigmoids
from codehead.errors import CheckpointError, ConfigurationError, DataError
from codehead.layer import Decision

FITTED = ["loss_weighted_linear", "loss_weighted_exponential", "probabilistic"]
VOCAB = 60


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)).eval()


def predictions(decision: Decision, tokens: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy codewords and their labels."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(decision.table.num_classes, (tokens,), generator=generator)
    codewords = decision.table.lookup(labels)
    return codewords + torch.randn(codewords.shape, generator=generator) * torch.linspace(0.2, 3, 12), labels


@pytest.fixture(params=FITTED)
def decision(request) -> Decision:
    return Decision(build("minrandom", 20, bits=12), decoder=request.param)


def test_a_decoder_that_is_not_fitted_says_how(decision):
    with pytest.raises(ConfigurationError, match=r"has to be fitted .*fit_decoder\(bit_logits, labels\)"):
        decision.decode(torch.zeros(1, 12))


def test_fitting_changes_what_is_chosen_for_the_better(decision):
    z, labels = predictions(decision, 2000)
    decision.fit_decoder(z, labels)
    fresh = slice(1000, 2000)
    right = (decision.decode(z[fresh]).ids[:, 0] == labels[fresh]).float().mean()
    plain = (Decision(decision.table).decode(z[fresh]).ids[:, 0] == labels[fresh]).float().mean()
    if decision.decoder_name == "loss_weighted_exponential":  # one bit that is sure and wrong outweighs all
        assert right > 0.05
    else:
        assert right > plain


def test_labels_of_minus_100_and_shapes_of_batches(decision):
    z, labels = predictions(decision)
    decision.fit_decoder(z, labels)
    expected = {name: values.clone() for name, values in decision.decoder_weights.items()}
    padded = torch.cat([labels, torch.full((20,), -100)]).view(4, 80)
    decision.fit_decoder(torch.cat([z, torch.randn(20, 12)]).view(4, 80, 12), padded)
    assert all(torch.equal(values, expected[name]) for name, values in decision.decoder_weights.items())
    with pytest.raises(ConfigurationError, match="every position needs one label"):
        decision.fit_decoder(z, labels[1:])
    with pytest.raises(DataError, match="found none"):
        decision.fit_decoder(z, torch.full_like(labels, -100))


def test_state_dicts_copies_and_half_precision_keep_the_weights(decision):
    z, labels = predictions(decision)
    decision.fit_decoder(z, labels)
    expected = decision.decode(z, k=3)
    other = Decision(build("minrandom", 20, bits=12, seed=9), decoder=decision.decoder_name)
    other.load_state_dict(decision.state_dict())
    for same in (other, copy.deepcopy(decision), copy.deepcopy(decision).half(), copy.deepcopy(decision).bfloat16()):
        assert torch.equal(same.decode(z, k=3).ids, expected.ids)
        assert torch.equal(same.decode(z, k=3).scores, expected.scores)


def test_weights_fitted_in_inference_mode_can_be_loaded_into(decision):
    z, labels = predictions(decision)
    with torch.inference_mode():
        decision.fit_decoder(z.clone(), labels)
    decision.load_state_dict(copy.deepcopy(decision.state_dict()))
    assert decision.decode(z.requires_grad_()).scores.requires_grad


def test_another_decoder_forgets_weights_that_it_does_not_share(decision):
    z, labels = predictions(decision)
    decision.fit_decoder(z, labels)
    if decision.decoder_name != "probabilistic":
        decision.decoder_name = "loss_weighted_linear"
        assert decision.decoder_weights["seen"].sum() == 300
    decision.decoder_name = "likelihood"
    assert decision.decoder_weights is None and list(decision.state_dict()) == ["table.sign_plane", "seal.digest"]
    with pytest.raises(ConfigurationError, match="'likelihood' has nothing to fit"):
        decision.fit_decoder(z, labels)
    decision.decoder_name = "probabilistic"
    with pytest.raises(ConfigurationError, match="has to be fitted"):
        decision.decode(z)


@pytest.mark.parametrize("decoder", FITTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_holds_the_weights(decoder, dtype, tmp_path):
    model = codehead.attach(tiny_model(), "minrandom", bits=12, decoder=decoder).to(dtype)
    z, labels = predictions(model.decision)
    model.decision.fit_decoder(z, labels)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.decision.decoder_name == decoder
    first, second = model.decision.decode(z, k=5), loaded.decision.decode(z, k=5)
    assert torch.equal(first.ids, second.ids) and torch.equal(first.scores, second.scores)


@pytest.mark.parametrize("decoder", FITTED)
def test_a_checkpoint_saved_before_fitting_can_be_fitted(decoder, tmp_path):
    model = codehead.attach(tiny_model(), "minrandom", bits=12, decoder=decoder)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    z, labels = predictions(loaded.decision)
    with pytest.raises(ConfigurationError, match="has to be fitted"):
        loaded.decision.decode(z)
    loaded.decision.fit_decoder(z, labels)
    assert loaded.decision.decode(z).ids.shape == (300, 1)


def test_a_decoder_chosen_after_loading_is_saved_with_its_weights(tmp_path):
    model = codehead.attach(tiny_model(), "minrandom", bits=12)
    model.decision.decoder_name = "probabilistic"
    z, labels = predictions(model.decision)
    model.decision.fit_decoder(z, labels)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.decision.decode(z, k=5).ids, model.decision.decode(z, k=5).ids)


def test_a_checkpoint_names_a_decoder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setitem(DECODERS._parts, "own", lambda bit_logits: Terms(bit_logits**3, None, None))
    model = codehead.attach(tiny_model(), "minrandom", bits=12, decoder="own")
    model.save_pretrained(tmp_path)
    z = torch.randn(4, 12)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.decision.decode(z).ids, model.decision.decode(z).ids)
    monkeypatch.delitem(DECODERS._parts, "own")
    with pytest.raises(CheckpointError, match="unknown decoder 'own'"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_checkpoint_without_a_decoders_weights_is_refused(tmp_path):
    codehead.attach(tiny_model(), "minrandom", bits=12, decoder="probabilistic").save_pretrained(tmp_path)
    (tmp_path / "codehead.json").unlink()
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["decision.decoder_sigmoids"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"decision\.decoder_sigmoids .*missing"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("scale", [1e-10, 1e-5, 1e8])
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_sigmoids_do_not_depend_on_unit_and_zero_of_the_outputs(scale, shift):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    symbols = torch.where(outputs + torch.randn(200, 3, generator=generator) > 1, 1.0, -1.0).double()
    moved = outputs * scale + shift * min(1, 1e5 * scale)  # where float64 keeps eight digits of the outputs
    one, two = (torch.sigmoid(-(s * z + o)) for z in (outputs, moved) for s, o in [fit_sigmoids(z, symbols)])
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


def test_sigmoids_have_no_slope_and_aim_a_little_short_of_certainty():
    """At the minimum of the cross entropy with targets (p + 1) / (p + 2) and 1 / (q + 2) for p and q samples."""
    generator = torch.Generator().manual_seed(0)
    symbols = torch.tensor([1.0, 1, 1, 1, 1, -1, -1, -1, 0]).double().unsqueeze(1).expand(9, 3)
    outputs = symbols + 2 * torch.randn(9, 3, generator=generator, dtype=torch.float64)
    slope, offset = fit_sigmoids(outputs, symbols)
    wrong = torch.sigmoid(-(slope * outputs + offset)) - torch.where(symbols > 0, 6 / 7, 1 / 5)
    wrong = wrong[:8]  # the last looks at nothing
    torch.testing.assert_close(wrong.sum(0), torch.zeros(3).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close((wrong * outputs[:8]).sum(0), torch.zeros(3).double(), atol=1e-8, rtol=0)
