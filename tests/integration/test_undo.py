"""All or nothing: wherever an operation on a model fails, the model is as it was."""

from __future__ import annotations

import sys

import pytest
import torch
from architectures import make, tokens
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import codehead
from codehead.models.undo import unchanged_by_failure

FAIL_IN = ("codehead", "transformers.modeling_utils", "transformers.configuration_utils", "torch.nn.utils.parametrize")
"""Modules whose functions fail when they are called."""


class Injected(Exception):
    """A failure that nobody expects."""


def fails_at(number, operation, model):
    """Run an operation whose `number`-th call of a function raises; whether there was one."""
    left = number

    def count(frame, event, argument):
        nonlocal left
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith(FAIL_IN) and frame.f_code.co_name not in ("__del__", "put_back"):
            if left == 0:
                raise Injected
            left -= 1

    sys.setprofile(count)
    try:
        operation(model)
    except Injected:
        return True
    finally:
        sys.setprofile(None)
    return False


def snapshot(model):
    """Everything that an operation may change, values and identities."""
    modules = [(name, type(module), module.training, sorted(vars(module))) for name, module in model.named_modules()]
    tensors = {name: (id(tensor), tensor.requires_grad) for name, tensor in model.named_parameters()}
    ties = dict(model.all_tied_weights_keys)
    return modules, tensors, model.config.to_dict(), model.loss_type, ties, model.get_output_embeddings()


OPERATIONS = {
    "attach": (lambda: make("gemma2"), lambda model: codehead.attach(model, bits=24)),
    "attach untied": (
        lambda: make("granite", tied=False),
        lambda model: codehead.attach(model, bits=24, loss="codeword", start="old_head", shortlist=[3], token_bias=True),
    ),
    "detach": (lambda: codehead.attach(make("gemma2"), bits=24).half(), codehead.detach),
    "detach, nothing kept": (lambda: codehead.attach(make("gemma2"), bits=24, keep_head=False), codehead.detach),
    "fold": (lambda: codehead.attach(make("gemma2"), bits=24), codehead.fold),
    "to_int8": (lambda: codehead.attach(make("llama"), bits=24, head="mtl", width=3), codehead.to_int8),
    "to_int4": (lambda: codehead.attach(make("llama"), bits=24), codehead.to_int4),
    "resize": (
        lambda: codehead.attach(make("llama"), bits=24),
        lambda model: model.resize_token_embeddings(pad_to_multiple_of=40),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failure_anywhere_changes_nothing(name, tmp_path):
    prepared, operation = OPERATIONS[name]
    model = prepared()
    before, weights = snapshot(model), {key: value.clone() for key, value in model.state_dict().items()}
    kept = None if not codehead.is_coded(model) or model._kept.head is None else model._kept.head.weight.clone()
    number = 0
    while fails_at(number, operation, model):
        assert snapshot(model) == before, number
        number += 1 + number // 50  # the first ones all, later ones more and more seldom
    assert number > 1
    model = prepared()
    while number and not fails_at(number, operation, model):
        number, model = number - 1, prepared()
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    if kept is not None:
        assert model._kept.head.weight.dtype == kept.dtype
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(input_ids=tokens()).logits, model(input_ids=tokens()).logits)


def test_a_failure_puts_classes_parameters_and_configurations_back():
    model = make("llama")
    before, weight = snapshot(model), model.lm_head.weight
    with pytest.raises(KeyboardInterrupt), unchanged_by_failure(model):
        model.__class__ = type("Other", (LlamaForCausalLM,), {})
        model.lm_head = torch.nn.Linear(2, 2)
        model.model.embed_tokens.weight = torch.nn.Parameter(torch.zeros(1))
        model.config.vocab_size = 7
        model.all_tied_weights_keys.clear()
        weight.requires_grad_(False)
        model.extra = 1
        raise KeyboardInterrupt
    assert snapshot(model) == before
    assert model.lm_head.weight is model.model.embed_tokens.weight is weight


def test_success_keeps_the_changes():
    model = make("llama")
    with unchanged_by_failure(model):
        model.config.vocab_size = 7
    assert model.config.vocab_size == 7
