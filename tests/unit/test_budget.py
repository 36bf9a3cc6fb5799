"""Bytes → a decision layer that fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import codehead
from codehead.errors import ConfigurationError
from codehead.evaluation.budget import allocate
from codehead.evaluation.size import ModelShape, model_size

SHAPES = st.builds(ModelShape, st.sampled_from([64, 160, 640, 2048]), st.sampled_from([300, 8192, 50_257, 262_144]))


@given(shape=SHAPES, share=st.floats(0.02, 1.0))
def test_a_budget_is_kept_and_used(shape, share):
    try:
        found = allocate(shape, share)
    except ConfigurationError:
        assert share < 0.3 and (shape.hidden_size <= 160 or shape.num_classes == 300)  # the head is most of it
        return
    whole = 2 * shape.num_classes * shape.hidden_size
    assert found.bytes_stored <= share * whole
    unused = share * whole - found.bytes_stored
    assert unused < 2 * shape.hidden_size + 4 or found.shortlist == shape.num_classes
    assert 2**found.bits >= shape.num_classes and found.bits % 8 == 0


@given(shape=SHAPES, shares=st.tuples(st.floats(0.05, 0.5), st.floats(0.05, 0.5)))
def test_more_bytes_never_buy_a_shorter_code(shape, shares):
    try:
        small, large = (allocate(shape, share) for share in sorted(shares))
    except ConfigurationError:
        return
    assert small.bits <= large.bits


def test_the_bytes_are_those_of_the_model_that_is_built():
    config = GPT2Config(
        n_embd=64, n_layer=1, n_head=2, vocab_size=300, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False
    )
    found = allocate(ModelShape(64, 300), 0.3)
    model = GPT2LMHeadModel(config)
    options = {**found.decision(), "shortlist": list(range(found.shortlist))}
    codehead.attach(model, **options)
    assert found.shortlist > 0 and found.token_bias
    assert model_size(model, weight_bytes=2).bytes_stored == found.bytes_stored


def test_a_budget_too_small_for_codewords_names_the_least():
    with pytest.raises(ConfigurationError, match=r"8,192 codewords of 16 bits and the head for them take 0\.82%"):
        allocate(ModelShape(160, 8192), 0.005)
    assert allocate(ModelShape(160, 8192), 0.0083).bits == 16


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ConfigurationError, match="give a share of the Softmax head's bytes"):
        allocate(ModelShape(160, 8192), share)
