"""Generation from a few known tokens: the same text as from all logits, and all logits wherever others might win."""

from __future__ import annotations

import pytest
import torch
from architectures import VOCAB, make, tokens
from transformers import LogitsProcessor, LogitsProcessorList

import codehead
from codehead.decoding import scan
from codehead.models import selection
from codehead.models.selection import Selection, select

WAYS = [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 3.0, "no_repeat_ngram_size": 2},
    {"do_sample": False, "repetition_penalty": 1e4},
    {"do_sample": False, "bad_words_ids": [[5], [7]], "min_new_tokens": 4, "suppress_tokens": list(range(90))},
    {"do_sample": True, "top_k": 5},
    {"do_sample": True, "top_k": 5, "temperature": 0.3, "top_p": 0.8, "repetition_penalty": 2.0},
    {"do_sample": True, "top_k": 0, "min_p": 0.2},
    {"do_sample": True, "top_k": 0, "min_p": 1e-9},
]
OPEN = [
    {"do_sample": True, "top_k": 0},
    {"do_sample": True, "top_k": 0, "top_p": 0.9},
    {"do_sample": False, "sequence_bias": {(9,): 30.0}},
    {"do_sample": False, "repetition_penalty": 0.5},
    {"do_sample": False, "guidance_scale": 1.5},
    {"num_beams": 3, "do_sample": False},
    {"do_sample": False, "output_logits": True, "return_dict_in_generate": True},
]


@pytest.fixture
def counted(monkeypatch):
    """Lets tiny models scan, and counts the selections, their steps, and the steps with all logits."""
    monkeypatch.setattr(scan, "LEAST_SCANNED", 1)
    monkeypatch.setattr(scan, "pays", lambda *_: True)
    monkeypatch.setattr(selection, "FEW", 3)
    seen: list[Selection] = []
    begin = Selection.__init__

    def remembered(self, *args, **options):
        begin(self, *args, **options)
        seen.append(self)

    monkeypatch.setattr(Selection, "__init__", remembered)
    return seen


def generate(model, ids, options):
    torch.manual_seed(0)
    model.generation_config.eos_token_id = 2
    found = model.generate(ids, max_new_tokens=8, pad_token_id=0, **options)
    return getattr(found, "sequences", found)


@pytest.mark.parametrize("options", WAYS + OPEN, ids=str)
@pytest.mark.parametrize(
    "layer", [{}, {"loss": "codeword", "dense_rows": [4, 8], "token_bias": True}], ids=["code", "corrected"]
)
def test_the_text_is_that_of_all_logits(options, layer, coded, counted, monkeypatch):
    model, ids = coded(**layer), tokens(3, 6)
    found = generate(model, ids, options)
    assert all(some.steps for some in counted)
    monkeypatch.setattr(type(model), "_may_select", lambda *_: None)
    assert torch.equal(found, generate(model, ids, options))


@pytest.mark.parametrize(("options", "whole"), [(WAYS[0], 0), (WAYS[4], 0), (WAYS[3], None), (WAYS[7], None)], ids=str)
def test_all_logits_are_computed_only_where_a_token_is_not_certain(options, whole, coded, counted):
    generate(coded(), tokens(3, 6), options)
    assert len(counted) == 1
    assert counted[0].whole == whole if whole == 0 else counted[0].whole > 0


@pytest.mark.parametrize("options", OPEN, ids=str)
def test_what_may_choose_any_token_gets_all_logits(options, coded, counted):
    model = coded()
    generate(model, tokens(2, 5), options)
    assert not counted


def test_an_unknown_processor_gets_all_logits(coded):
    class Mine(LogitsProcessor):
        pass

    assert "Mine may choose any token" in select(LogitsProcessorList([Mine()]), coded().generation_config)


def test_a_model_of_few_tokens_scores_them_all(coded):
    model = coded()
    assert f"{VOCAB} tokens are scored as fast" in repr(model.decision)
    assert model._may_select(Selection(1, 0, LogitsProcessorList(), sampling=False)) is None


def test_a_coded_assistant_and_a_coded_target(coded, counted):
    target, assistant = make("llama"), coded()
    ids = tokens(1, 6)
    expected = generate(target, ids, {"do_sample": False})
    assert torch.equal(generate(target, ids, {"do_sample": False, "assistant_model": assistant}), expected)
    expected = generate(assistant, ids, {"do_sample": False})
    assert torch.equal(generate(assistant, ids, {"do_sample": False, "assistant_model": target}), expected)


def test_a_forward_outside_of_generation_gives_all_logits(coded, counted):
    model, ids = coded(), tokens()
    generate(model, ids, {"do_sample": False})
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()
    assert codehead.is_coded(model)
