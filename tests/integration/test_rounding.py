"""Weights of a decision layer as integers: close to what they were, small in a checkpoint, the same after reloading."""

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
from codehead.models.rounding import round_parts, rounded_weights

CORRECTED = {"loss": "codeword", "dense_rows": [3, 50, 7], "token_bias": True}
LAYERS = {
    "linear": {"code": "minrandom", "bits": 24},
    "linear with biases": {"code": "minrandom", "bits": 24, "head_params": {"bias": True}},
    "mtl": {"code": "minrandom", "bits": 16, "head": "mtl", "width": 8},
    "corrected": {"code": "minrandom", "bits": 24, **CORRECTED},
    "extra_bit_tokens": {"code": "itq", "bits": 24, **CORRECTED, "extra_bit_tokens": [5, 6, 9], "extra_bits": 8},
    "mtl with biases": {"code": "minrandom", "bits": 16, "head": "mtl", "width": 8, "head_params": {"bias": True}},
    "mtl in groups": {"code": "minrandom", "bits": 16, "head": "mtl", "width": 12, "head_params": {"groups": 1}},
    "mtl in two groups": {
        "code": "minrandom",
        "bits": 16,
        "head": "mtl",
        "width": 12,
        "head_params": {"groups": 2, "bias": True},
    },
    "chain": {"code": "minimal", "bits": None, "head": "chain", "width": 8},
    "adaptive": {
        "code": "one_vs_all",
        "head": "adaptive",
        "loss": "codeword",
        "head_params": {"cutoffs": [20], "bias": True},
    },
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


NEAREST = {
    "mtl": "output_weight",
    "mtl with biases": "output_weight",
    "mtl in two groups": "output_weight",
}
"""What is rounded to the nearest of heads that apply it not as one linear map."""


def states(hidden=16, tokens=2000):
    """Hidden states of very different spread along correlated directions."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(hidden, hidden, generator=generator) * torch.logspace(0, -2, hidden)[:, None]
    return torch.randn(tokens, hidden, generator=generator) @ mix


ROUNDINGS = {"int8": codehead.to_int8, "int4": codehead.to_int4}


@pytest.mark.parametrize("kind", ROUNDINGS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_checkpoint_reloads_bit_for_bit(kind, layer, tmp_path):
    model = ROUNDINGS[kind](coded(layer))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert model_size(loaded) == model_size(model)
    for again in ROUNDINGS.values():
        with pytest.raises(ConfigurationError, match=f"are {kind} already"):
            again(loaded)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_rows_of_int4_have_16_values_and_biases_more(layer):
    model = coded(layer)
    head, before = model.get_output_embeddings(), copy.deepcopy(model.get_output_embeddings())
    assert codehead.to_int4(model) is model
    for name, old in before.named_parameters():
        path, _, leaf = name.rpartition(".")
        new = getattr(head.get_submodule(path), leaf)
        assert new.shape == old.shape and (new - old).norm() < (0.01 if leaf.endswith("bias") else 0.2) * old.norm()
        if not leaf.endswith("bias"):
            assert all(1 < len(row.unique()) <= 16 for row in new.flatten(0, -2))
        elif old[0].numel() > 16:
            assert max(len(row.unique()) for row in new.flatten(0, -2)) > 16
    if model.decision.corrections is not None:
        assert len(model.decision.corrections.token_bias.unique()) > 16


def test_scales_of_int4_err_less_than_the_largest_magnitude_would_have_it():
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) ** 3
    head = torch.nn.Linear(64, 50, bias=False)
    head.weight.data = weight.clone()
    round_parts(head, torch.nn.Module(), 4)
    step = weight.abs().amax(-1, keepdim=True) / 7
    plain = (weight / step).round() * step
    errors = [(found - weight).square().sum(-1) for found in (head.weight.detach(), plain)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all() and errors[0].sum() < 0.95 * errors[1].sum()


@pytest.mark.filterwarnings("ignore:the head does not apply")
@pytest.mark.parametrize("layer", LAYERS)
def test_hidden_states_tell_how_errors_of_int4_are_spread(layer):
    """Outputs change less; what the head is given in the end is of the same kind, not the same."""
    seen, held_out = states().split(1000)
    change = {}
    for given in (None, seen):
        model = coded(LAYERS[layer])
        before = model.get_output_embeddings()(held_out)
        codehead.to_int4(model, given)
        change[given is None] = (model.get_output_embeddings()(held_out) - before).norm().item()
    assert change[False] < (0.9 if layer not in NEAREST else 0.97) * change[True]


@pytest.mark.parametrize("layer", ["linear", "low rank"])
def test_rows_that_are_rounded_a_few_at_a_time_come_to_the_same(layer, monkeypatch):
    found = []
    for rows in (3, 10**6):
        monkeypatch.setattr("codehead.models.rounding.ROWS", rows)
        found.append(codehead.to_int4(coded(LAYERS[layer]), states()).state_dict())
    assert all(torch.equal(one, other) for one, other in zip(found[0].values(), found[1].values(), strict=True))


@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_not_error_corrected_is_told(layer, recwarn):
    codehead.to_int4(coded(LAYERS[layer]), states())
    told = [str(one.message) for one in recwarn if "rounded to the nearest" in str(one.message)]
    assert told == (
        [f"the head does not apply {NEAREST[layer]} as one linear map: rounded to the nearest"]
        if layer in NEAREST
        else []
    )


def test_a_layer_that_gives_only_zeros_has_nothing_to_correct():
    model = coded(LAYERS["mtl in groups"])
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    with pytest.warns(UserWarning, match="output_weight"):
        codehead.to_int4(model, states())
    assert logits(model).isfinite().all()


def test_values_beyond_the_dtype_within_a_head_are_told():
    model = coded(LAYERS["low rank"])
    model.get_output_embeddings().weight.data.mul_(1e38)
    with pytest.raises(ConfigurationError, match="values within the head that are not finite"):
        codehead.to_int4(model, 1e6 * states())
    assert not rounded_weights(model)


@pytest.mark.parametrize("width", [1, 2, 7, 16])
def test_integers_are_packed_two_to_a_byte(width):
    head = torch.nn.Linear(width, 5, bias=False)
    wanted = torch.randint(-7, 8, (5, width), generator=torch.Generator().manual_seed(width)).float()
    wanted[:, 0] = 7.0  # so that the scale is 1
    head.weight.data = wanted.clone()
    round_parts(head, torch.nn.Module(), 4)
    stored = head.parametrizations.weight.original0
    assert stored.dtype == torch.uint8 and stored.shape == (5, -(-width // 2))
    assert rounded_weights(head) == 5 * width
    torch.testing.assert_close(head.weight, wanted)


def test_hidden_states_of_something_else_are_refused():
    for hidden, message in (
        (states(hidden=8), r"shape \(2000, 8\); give \(tokens, 16\)"),
        (states() * float("nan"), "hidden holds NaN"),
        (states() * 0, "only zeros"),
    ):
        model = coded(LAYERS["corrected"])
        with pytest.raises(ConfigurationError, match=message):
            codehead.to_int4(model, hidden)
        assert not rounded_weights(model)  # nothing has changed


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


@pytest.mark.parametrize("given", [(codehead.to_int8,), (codehead.to_int4,), (codehead.to_int4, states().bfloat16())])
def test_half_precision_generation_and_folding(given):
    rounded, *hidden = given
    model = rounded(coded(LAYERS["corrected"]).to(torch.bfloat16), *hidden)
    expected = logits(model)
    assert model.generate(tokens(), max_new_tokens=3, do_sample=False).shape[1] == tokens().shape[1] + 3
    folded = codehead.fold(copy.deepcopy(model))
    torch.testing.assert_close(logits(folded).softmax(-1).float(), expected.softmax(-1).float(), atol=0.02, rtol=0.05)


@pytest.mark.parametrize("rounded", ROUNDINGS.values(), ids=ROUNDINGS)
def test_a_row_of_zeros_stays_one(rounded):
    model = coded(LAYERS["corrected"])
    torch.nn.init.zeros_(model.get_output_embeddings().rows.weight)
    rounded(model)
    assert not model.get_output_embeddings().rows.weight.any()


@pytest.mark.parametrize("rounded", ROUNDINGS.values(), ids=ROUNDINGS)
def test_what_cannot_be_rounded_is_refused(rounded):
    with pytest.raises(ConfigurationError, match="has no decision layer"):
        rounded(make("llama"))
    model = coded(LAYERS["corrected"])
    model.get_output_embeddings().to("meta")
    with pytest.raises(ConfigurationError, match="offloaded cannot be rounded"):
        rounded(model)


@pytest.mark.parametrize("rounded", ROUNDINGS.values(), ids=ROUNDINGS)
def test_scales_of_frozen_weights_stay_frozen(rounded):
    model = coded(LAYERS["corrected"])
    model.lm_head.bits.requires_grad_(False)
    rounded(model)
    asked = {name: values.requires_grad for name, values in model.lm_head.named_parameters()}
    assert asked.pop("bits.parametrizations.weight.original1") is False and all(asked.values())
