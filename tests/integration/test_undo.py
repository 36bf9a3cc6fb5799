"""All or nothing: wherever an operation on a model fails, the model is as it was."""

from __future__ import annotations

import sys

import pytest
import torch
from architectures import make
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import codehead
from codehead.models.guards import all_or_nothing

FAIL_IN = ("codehead", "transformers.modeling_utils", "transformers.configuration_utils", "torch.nn.utils.parametrize")
"""Modules whose functions fail when they are called."""


class Injected(BaseException):
    """A failure that nobody expects."""


def calls(operation, model, fail_at=None):
    """How many functions an operation calls; the one numbered `fail_at` raises."""
    number = 0

    def count(frame, event, argument):
        nonlocal number
        in_one = frame.f_globals.get("__name__", "").startswith(FAIL_IN)
        if event == "call" and in_one and frame.f_code.co_name != "<genexpr>":  # closing one ignores exceptions
            number += 1
            if number == fail_at:
                sys.setprofile(None)
                raise Injected

    sys.setprofile(count)
    try:
        operation(model)
    finally:
        sys.setprofile(None)
    return number


def snapshot(model):
    """Everything that an operation may change, values and identities."""
    modules = [(name, type(module), module.training, sorted(vars(module))) for name, module in model.named_modules()]
    tensors = {name: (id(tensor), tensor.requires_grad) for name, tensor in model.named_parameters()}
    ties = dict(model.all_tied_weights_keys)
    kept = getattr(vars(model).get("_kept"), "head", None)
    old = kept and (kept.weight.dtype, kept.weight.requires_grad, kept.training)
    return modules, tensors, model.config.to_dict(), model.loss_type, ties, model.get_output_embeddings(), old


OPERATIONS = {
    "attach": (lambda: make("gemma2"), lambda model: codehead.attach(model, "minrandom", bits=24)),
    "attach untied": (
        lambda: make("granite", tied=False),
        lambda model: codehead.attach(
            model, "minrandom", bits=24, loss="codeword", start="old_head", dense_rows=[3], token_bias=True
        ),
    ),
    "detach": (lambda: codehead.attach(make("gemma2"), "minrandom", bits=24).half(), codehead.detach),
    "detach, nothing kept": (
        lambda: codehead.attach(make("gemma2"), "minrandom", bits=24, keep_head=False),
        codehead.detach,
    ),
    "fold": (lambda: codehead.attach(make("gemma2"), "minrandom", bits=24), codehead.fold),
    "to_int8": (lambda: codehead.attach(make("llama"), "minrandom", bits=24, head="mtl", width=3), codehead.to_int8),
    "to_int4": (lambda: codehead.attach(make("llama"), "minrandom", bits=24), codehead.to_int4),
    "resize": (
        lambda: codehead.attach(make("llama"), "minrandom", bits=24),
        lambda model: model.resize_token_embeddings(len(model.get_input_embeddings().weight)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failure_anywhere_changes_nothing(name, tmp_path):
    prepared, operation = OPERATIONS[name]
    operation(prepared())  # fills caches: the next runs call the same functions
    total, model = calls(operation, prepared()), prepared()
    before, weights = snapshot(model), {key: value.clone() for key, value in model.state_dict().items()}
    somewhere = range(1, total + 1, 1 + total // 40)
    for number in sorted({*range(1, min(20, total)), *somewhere, *range(max(1, total - 20), total + 1)}):
        with pytest.raises(Injected):
            calls(operation, model, fail_at=number)
        assert snapshot(model) == before, number
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items()), number
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.all_tied_weights_keys == model.all_tied_weights_keys
    assert all(torch.equal(value, weights[key]) for key, value in again.state_dict().items())


@all_or_nothing
def interrupted(model):
    model.lm_head.weight.requires_grad_(False)
    model.__class__ = type("Other", (LlamaForCausalLM,), {})
    model.lm_head = torch.nn.Linear(2, 2)
    model.model.embed_tokens.weight = torch.nn.Parameter(torch.zeros(1))
    model.config.vocab_size = 7
    model.all_tied_weights_keys.clear()
    model.extra = 1
    raise KeyboardInterrupt


def test_a_failure_puts_classes_parameters_and_configurations_back():
    model = make("llama")
    before, weight = snapshot(model), model.lm_head.weight
    with pytest.raises(KeyboardInterrupt):
        interrupted(model)
    assert snapshot(model) == before
    assert model.lm_head.weight is model.model.embed_tokens.weight is weight


@all_or_nothing
def completed(model):
    model.config.vocab_size = 7


def test_success_keeps_the_changes():
    model = make("llama")
    completed(model)
    assert model.config.vocab_size == 7
