from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from codehead.errors import ConfigurationError
from codehead.lab import measure as timing
from codehead.lab.measure import generation_speed


@pytest.fixture
def model():
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=20, n_positions=32, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).train()


def test_models_take_turns_and_the_first_round_does_not_count(monkeypatch):
    calls = []
    seconds = iter([9.0, 9.0, 1.0, 2.0, 0.5, 4.0, 2.0, 1.0])

    def generate(model, prompt, mask, new_tokens):
        assert mask.tolist() == [[1, 1]]
        calls.append(model)
        return next(seconds)

    monkeypatch.setattr(timing, "_generate", generate)
    speeds = generation_speed({"a": "A", "b": "B"}, torch.ones(1, 2), new_tokens=4, repeats=3)
    assert calls == ["A", "B"] * 4
    assert speeds["a"].repeats == [4.0, 8.0, 2.0]
    assert speeds["a"].tokens_per_second == 4.0
    assert speeds["b"].tokens_per_second == 2.0


def test_a_batch_counts_the_tokens_of_all_its_rows(monkeypatch):
    masks = []
    monkeypatch.setattr(timing, "_generate", lambda model, prompt, mask, new_tokens: masks.append(mask) or 2.0)
    mask = torch.tensor([[0, 1], [1, 1], [1, 1]])
    speeds = generation_speed({"a": "A"}, torch.ones(3, 2), attention_mask=mask, new_tokens=4, repeats=1)
    assert speeds["a"].tokens_per_second == 3 * 4 / 2.0
    assert all(seen is mask for seen in masks)


def test_every_generation_has_the_same_length(model, monkeypatch):
    lengths = []
    original = model.generate
    monkeypatch.setattr(model, "generate", lambda *a, **k: lengths.append(original(*a, **k).shape[1]))
    generation_speed({"a": model}, torch.tensor([[1, 2]]), new_tokens=5, repeats=2)
    assert lengths == [7, 7, 7]
    assert model.training


def test_nothing_to_time(model):
    with pytest.raises(ConfigurationError, match="repeats=0"):
        generation_speed({"a": model}, torch.tensor([[1]]), repeats=0)
