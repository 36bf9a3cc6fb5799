"""Generation from a few known tokens: the same text as from all logits, and all logits wherever others might win."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from architectures import VOCAB, make, tokens
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria

import codehead
from codehead.decoding import scan
from codehead.models import selection
from codehead.models.hidden import probed
from codehead.models.selection import Selection, select
from codehead.screening import calibration

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


# Only a generation sees its own selection.


@pytest.fixture(params=["coded", "screened"])
def selecting(request, coded, counted, monkeypatch):
    """A model whose steps compute few logits, not yet prepared."""
    if request.param == "coded":
        return coded()
    pytest.importorskip("faiss")
    monkeypatch.setattr(calibration, "FEW", 32)
    model = make("llama")
    with probed(model) as read, torch.no_grad():
        hidden = read(input_ids=tokens(20, 20, seed=9), use_cache=False).flatten(0, 1)
    model = codehead.screen(model, hidden=hidden, bits=64, recall=0.9)
    assert model.screen.settings.candidates < VOCAB
    return pickle.loads(pickle.dumps(model))


def stock_logits(model, ids):
    """All logits of a copy that never generated."""
    with torch.no_grad():
        return copy.deepcopy(model)(ids).logits


def in_thread(work, *args):
    """The value of a function in another thread."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work, *args).result(60)


class Calling(StoppingCriteria):
    """Calls a function at every step, and stops nothing."""

    def __init__(self, function):
        self.function, self.found = function, []

    def __call__(self, input_ids, scores, **options):
        self.found.append(self.function(input_ids))
        return torch.zeros(len(input_ids), dtype=torch.bool)


def greedy(model, ids, **options):
    return generate(model, ids, {"do_sample": False, **options})


def test_a_forward_in_another_thread_gets_all_logits_at_any_time(selecting):
    """While the model is probed before its first text, and within its steps."""
    ids, found = tokens(1, 6), []
    expected, generating = stock_logits(selecting, ids), threading.get_ident()

    def meanwhile(*_):
        if threading.get_ident() == generating:
            found.append(in_thread(lambda: selecting(ids).logits.detach()))

    hook = selecting.get_input_embeddings().register_forward_hook(meanwhile)
    greedy(selecting, ids)
    hook.remove()
    assert len(found) >= 8 and all(torch.equal(logits, expected) for logits in found)


def test_a_forward_in_a_stopping_criterion_gets_all_logits(selecting):
    ids, calling = tokens(1, 6), Calling(lambda text: selecting(text[:, :6]).logits)
    text = greedy(selecting, ids)
    assert torch.equal(greedy(selecting, ids, stopping_criteria=[calling]), text)
    expected = stock_logits(selecting, ids)
    assert calling.found and all(torch.equal(logits, expected) for logits in calling.found)


@pytest.mark.filterwarnings("ignore:the dense head computes all logits")
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 0}], ids=str)
def test_a_generation_within_another_is_one_of_its_own(options, selecting):
    ids, calling = tokens(1, 6), Calling(lambda text: greedy(selecting, ids, **options))
    outer, inner = greedy(selecting, ids), greedy(selecting, ids, **options)
    assert torch.equal(greedy(selecting, ids, stopping_criteria=[calling]), outer)
    assert calling.found and all(torch.equal(text, inner) for text in calling.found)


def test_generations_that_overlap_in_two_threads(selecting):
    """The second one begins within the first one, which ends before it."""
    ids, begun, ended, others = tokens(1, 6), threading.Event(), threading.Event(), []
    expected, text = stock_logits(selecting, ids), greedy(copy.deepcopy(selecting), ids)

    def second():
        return greedy(selecting, ids, stopping_criteria=[Calling(lambda _: begun.set() or ended.wait(60))])

    def begin(_):
        if not others:
            others.append(threads.submit(second))
        begun.wait(60)

    with ThreadPoolExecutor(1) as threads:
        first = greedy(selecting, ids, stopping_criteria=[Calling(begin)])
        ended.set()
        assert torch.equal(first, text) and torch.equal(others[0].result(60), text)
    assert torch.equal(selecting(ids).logits, expected)


def test_many_threads_prepare_and_generate_at_once(selecting):
    prompts = [tokens(1, length, seed=length) for length in range(3, 9)]
    alone = copy.deepcopy(selecting)
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda ids: greedy(selecting, ids), prompts))
    assert all(torch.equal(text, greedy(alone, ids)) for text, ids in zip(found, prompts, strict=True))
    assert getattr(selecting, "steps", 0) == getattr(alone, "steps", 0)
