"""Codes that grow by what a linear head confuses on hidden states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codehead.codes import build
from codehead.config import DecisionConfig
from codehead.errors import ConfigurationError
from codehead.training import new_head
from codehead.training.new_head import grown, grows

V, HIDDEN = 24, 6


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(new_head, "STEPS", 30)


@pytest.fixture(scope="module")
def seen():
    """Prototypes, and noisy hidden states around them with their labels."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(V, HIDDEN, generator=generator)
    labels = torch.randint(V, (4000,), generator=generator)
    return prototypes, prototypes[labels] + 0.5 * torch.randn(4000, HIDDEN, generator=generator), labels


def growing(**fields):
    return DecisionConfig(code="ecoc_one", **fields)


def test_a_code_grows_to_its_length_and_keeps_its_start(seen):
    start = build("merged_decoc", V, prototypes=seen[0].numpy())
    code = grown(growing(bits=11, code_params={"start": start, "rounds": 3}), *seen)
    assert code.design == "ecoc_one" and code.length == 11
    assert np.array_equal(code.to_array()[:, : start.length], start.to_array())


def test_every_round_asks_anew_what_is_confused(seen):
    """The columns of the first round are the same however many follow; those after it are not."""
    once = grown(growing(bits=11, code_params={"rounds": 1}), *seen).to_array()
    twice = grown(growing(bits=11, code_params={"rounds": 2}), *seen).to_array()
    begun = grown(growing(bits=8, code_params={"rounds": 1}), *seen).to_array()
    assert np.array_equal(once[:, :8], begun) and np.array_equal(twice[:, :8], begun)
    assert not np.array_equal(once, twice)


def test_the_same_seed_gives_the_same_code(seen):
    decision = growing(bits=10, seed=4)
    assert grown(decision, *seen).checksum == grown(decision, *seen).checksum


def test_a_length_that_leaves_no_column_for_a_round_is_refused(seen):
    with pytest.raises(
        ConfigurationError, match=r"bits=7 leaves 2 columns for 3 rounds after a start of 5; give bits=8"
    ):
        grown(growing(bits=7), *seen)


def test_a_code_that_is_told_what_is_confused_does_not_grow():
    assert grows(growing(code_params={"rounds": 2}))
    assert not grows(growing(code_params={"confusion": np.eye(3)}))
    assert not grows(DecisionConfig(code="itq"))
