"""Learning from the tokens that matter at some positions of a large vocabulary."""

from __future__ import annotations

import math

import pytest
import torch
from architectures import HIDDEN, VOCAB, make
from torch.nn import functional as F

import codehead
from codehead.models.probe import LogitScaling, softmax_head
from codehead.training import likely_tokens
from codehead.training.config import Distillation
from codehead.training.distil import _Student, distil
from codehead.training.likely_tokens import LikelyTokens, imitate_some

CORRECTED = {"loss": "codeword", "dense_rows": [3, 50, 7], "token_bias": True, "extra_bits": 9}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Products in float32, and fewer tokens at every step than there are."""
    monkeypatch.setattr(likely_tokens, "is_native", lambda dtype: False)
    for name, value in {"ALWAYS": 8, "DRAWN": 16, "LIKELY": 2, "SIZES": 8}.items():
        monkeypatch.setattr(likely_tokens, name, value)


def peaked():
    """A Softmax head whose distributions are far from uniform, its model and hidden states."""
    generator = torch.Generator().manual_seed(3)
    model = make("llama", tied=False)
    torch.nn.init.normal_(model.get_output_embeddings().weight, generator=generator)
    return softmax_head(model), model, torch.randn(300, HIDDEN, generator=generator)


def coded(model):
    return codehead.attach(model, "itq", bits=24, start="old_head", extra_bit_tokens=[2, 7, 11, 50], **CORRECTED)


def student_of(model):
    def ones(values):
        return torch.ones_like(values[..., :1])

    return _Student(model.get_output_embeddings(), model.decision, LogitScaling(), ones)


@pytest.mark.parametrize("written", [0, 5, 150, 300])
@pytest.mark.parametrize("positions", [1000, 7])
def test_what_is_looked_up(monkeypatch, positions, written):
    monkeypatch.setattr(likely_tokens, "TOGETHER", positions * VOCAB)
    monkeypatch.setattr(likely_tokens, "CACHED", 2 * VOCAB + 3)
    teacher, _, hidden = peaked()
    found = LikelyTokens.of(teacher, hidden, written=written)
    likely = teacher(hidden).log_softmax(-1)
    torch.testing.assert_close(found.log_sums, teacher(hidden).logsumexp(-1))
    torch.testing.assert_close(found.expected, likely[written:].exp().sum(0).double(), rtol=1e-4, atol=1e-4)
    assert torch.equal(found.ids.long(), likely.topk(2).indices)


def test_a_step_compares_the_likely_tokens_and_a_draw_of_the_others():
    teacher, _, hidden = peaked()
    found, positions = LikelyTokens.of(teacher, hidden), torch.tensor([5, 9])
    ids, log_weights = found.draw(positions, torch.Generator().manual_seed(0))
    certain = set(found.expected.topk(8).indices.tolist()) | set(found.ids[positions].flatten().tolist())
    drawn = len(ids) - len(certain)
    assert certain <= set(ids.tolist()) and 16 <= drawn < 16 + 8 and len(ids) % 8 == 0 and ids.unique().equal(ids)
    stands_for = math.log((VOCAB - len(certain)) / drawn)
    wanted = torch.tensor([0.0 if token in certain else stands_for for token in ids.tolist()])
    torch.testing.assert_close(log_weights, wanted)


def test_where_every_token_is_likely_a_step_compares_them_all():
    every = torch.arange(VOCAB, dtype=torch.int32).view(-1, 1)
    found = LikelyTokens(every, torch.zeros(VOCAB), torch.ones(VOCAB, dtype=torch.float64))
    ids, log_weights = found.draw(torch.arange(VOCAB), torch.Generator())
    assert ids.tolist() == list(range(VOCAB)) and not log_weights.any()


def test_some_scores_are_those_of_all():
    _, model, hidden = peaked()
    student = student_of(coded(model))
    ids = torch.tensor([0, 2, 3, 11, 40, 50])
    torch.testing.assert_close(student.of_some(hidden, ids), student.scores(hidden)[:, ids])
    plain = student_of(codehead.attach(peaked()[1], "itq", bits=24))
    torch.testing.assert_close(plain.of_some(hidden, ids), plain.scores(hidden)[:, ids])


def test_with_all_tokens_it_is_the_divergence_and_its_gradient():
    teacher, model, hidden = peaked()
    student, sums = student_of(coded(model)), LikelyTokens.of(teacher, hidden).log_sums
    everything = torch.arange(VOCAB), torch.zeros(VOCAB)
    nats = imitate_some(student.of_some, teacher, hidden, sums, everything)
    found = [values.grad.clone() for values in (*student.weights, *student.numbers)]
    for values in (*student.weights, *student.numbers):
        values.grad = None
    wanted = F.kl_div(
        student.scores(hidden).log_softmax(-1),
        teacher(hidden).detach().log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    wanted.backward()
    assert nats == pytest.approx(wanted.item(), rel=1e-4)
    for values, gradient in zip((*student.weights, *student.numbers), found, strict=True):
        torch.testing.assert_close(gradient, values.grad, rtol=1e-3, atol=1e-6)


def test_a_head_learns_from_some_tokens_nearly_what_it_learns_from_all():
    ended = []
    for is_some in (False, True):
        teacher, model, hidden = peaked()
        likely = LikelyTokens.of(teacher, hidden) if is_some else None
        coded(model)
        begun = divergence(model, teacher, hidden)
        options = Distillation(steps=100, batch_tokens=64, learning_rate=1e-2, code_learning_rate=6e-2)
        distil(model, teacher, hidden, options, likely=likely)
        ended.append(divergence(model, teacher, hidden))
    assert ended[0] < 0.75 * begun
    assert begun - ended[1] > 0.8 * (begun - ended[0])


@torch.no_grad()
def divergence(model, teacher, hidden):
    scores = model.decision.logits(model.get_output_embeddings()(hidden)).log_softmax(-1)
    return F.kl_div(scores, teacher(hidden).log_softmax(-1), reduction="batchmean", log_target=True).item()
