"""Confusions of tokens, against answers one at a time, and three rounds of train, measure, add columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import codehead
from codehead.codes import build
from codehead.errors import DataError
from codehead.evaluation.metrics import token_confusions

V = 24


def make_model(**decision: Any) -> Any:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=V, n_positions=16, bos_token_id=0, eos_token_id=0)
    config.initializer_range = 0.6
    model = GPT2LMHeadModel(config)
    return codehead.attach(model, **decision) if decision else model


def make_examples(lengths: list[int]) -> list[dict[str, list[int]]]:
    random = np.random.default_rng(0)
    rows = []
    for length in lengths:
        ids = random.integers(V, size=length).tolist()
        rows.append({"input_ids": ids, "labels": [-100 if i % 4 == 1 else label for i, label in enumerate(ids)]})
    return rows


EXAMPLES = make_examples([9, 4, 12, 1, 7])


@pytest.mark.parametrize("decoder", [None, "hamming", "likelihood"])
def test_counts_are_those_one_at_a_time(decoder: str | None) -> None:
    model = make_model() if decoder is None else make_model(code="minrandom", bits=9, decoder=decoder)
    expected = np.zeros((V, V))
    for example in EXAMPLES:
        ids = torch.tensor([example["input_ids"]])
        with torch.no_grad():
            if decoder is None:
                choices = model.eval()(ids).logits[0].argmax(-1)
            else:
                choices = model.decision.decode(model.eval().bit_logits(ids)[0]).ids[:, 0]
        for label, choice in zip(example["labels"][1:], choices[:-1].tolist(), strict=True):
            if label != -100:
                expected[label, choice] += 1
    model.train()
    steps: list[tuple[int, int]] = []
    confusion = token_confusions(model, None, EXAMPLES, batch_size=2, progress=lambda *step: steps.append(step))
    found = np.zeros((V, V))
    found[confusion.labels, confusion.choices] = confusion.counts
    assert np.array_equal(found, expected)
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert model.training


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no labelled token"),
        ([{"input_ids": [1, 2], "labels": [1, -100]}], "no labelled token"),
        ([{"input_ids": [1, 2], "labels": [1, V]}], f"the label {V}, but the model has {V} tokens"),
    ],
)
def test_data_without_a_token(examples: list[dict[str, list[int]]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        token_confusions(make_model(), None, examples)


def test_rounds_of_training_and_adding_columns() -> None:
    """A text in which every token follows from the one before; the code grows by what is confused."""
    order = np.random.default_rng(1).permutation(V)
    rows = [{"input_ids": (r := np.roll(order, -s)[:12].tolist()), "labels": r} for s in range(V)]
    prototypes = np.random.default_rng(2).standard_normal((V, 6))
    codebook, errors = build("minimal", V), []
    for _ in range(3):
        model = make_model(code=codebook)
        train(model, rows)
        confusion = token_confusions(model, None, rows)
        errors.append(confusion.error)
        options = {"prototypes": prototypes, "confusion": confusion, "start": codebook, "stop_error": 0.0}
        grown = build("ecoc_one", V, bits=codebook.length + 4, **options)
        assert np.array_equal(grown.to_array()[:, : codebook.length], codebook.to_array())
        codebook = grown
    assert codebook.length > 5
    assert errors[-1] < errors[0]


def train(model: Any, rows: list[dict[str, list[int]]]) -> None:
    torch.manual_seed(0)
    ids = torch.tensor([row["input_ids"] for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(8):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
