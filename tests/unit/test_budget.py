"""Bytes → a decision layer that fits."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import codehead
from codehead.config import DecisionConfig, ModelShape
from codehead.config.budget import CODE_SHARE
from codehead.errors import ConfigurationError
from codehead.evaluation.size import model_size
from codehead.models.hidden import Statistics

SHAPES = st.builds(ModelShape, st.sampled_from([64, 160, 640, 2048]), st.sampled_from([300, 8192, 50_257, 262_144]))


def bits_of(found):
    """Of a weight."""
    return {"int4": 4, "int8": 8}[found.weights]


@settings(deadline=None)
@given(shape=SHAPES, share=st.floats(0.02, 1.0))
def test_a_budget_is_kept_and_used(shape, share):
    try:
        found = DecisionConfig.for_budget(shape, share)
    except ConfigurationError:
        assert share < 0.3 and (shape.hidden_size <= 160 or shape.num_classes == 300)  # the head is most of it
        return
    whole = 2 * shape.num_classes * shape.hidden_size
    assert found.size(shape).bytes_stored <= share * whole
    unused = share * whole - found.size(shape).bytes_stored
    assert unused < shape.hidden_size * bits_of(found) // 8 + 6 + 1 or found.dense_rows == shape.num_classes
    assert 2**found.bits >= shape.num_classes and found.bits % 8 == 0


@settings(deadline=None)
@given(shape=SHAPES, shares=st.tuples(st.floats(0.05, 0.5), st.floats(0.05, 0.5)))
def test_more_bytes_never_buy_a_shorter_code(shape, shares):
    try:
        small, large = (DecisionConfig.for_budget(shape, share) for share in sorted(shares))
    except ConfigurationError:
        return
    assert small.bits <= large.bits or (small.weights, large.weights) == ("int4", "int8")


@settings(deadline=None)
@given(shape=SHAPES, share=st.floats(0.005, 1.0))
def test_rows_are_in_int4_where_codewords_are_short_for_the_hidden_size(shape, share):
    try:
        found = DecisionConfig.for_budget(shape, share)
    except ConfigurationError:
        return
    if found.weights == "int4":
        no_room = (
            shape.num_classes * 3 + 24 * (shape.hidden_size + 2) > share * 2 * shape.hidden_size * shape.num_classes
        )
        assert found.bits + found.extra_bits <= 1.25 * shape.hidden_size or no_room


def test_the_bytes_are_those_of_the_model_that_is_built():
    config = GPT2Config(
        n_embd=64, n_layer=1, n_head=2, vocab_size=300, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False
    )
    shape = ModelShape(64, 300)
    for share, weights in ((0.05, "int4"), (0.1, "int4"), (0.3, "int8"), (0.5, "int8")):
        model = GPT2LMHeadModel(config)
        found = DecisionConfig.for_budget(model, share)
        assert found == DecisionConfig.for_budget(shape, f"{100 * share:g}%")
        codehead.attach(model, found, statistics=Statistics(torch.arange(300)))
        rounded = {"int4": codehead.to_int4, "int8": codehead.to_int8}[found.weights](model)
        assert model_size(rounded, weight_bytes=2) == found.size(shape)
        assert found.weights == weights
    assert found.dense_rows > 0 and found.extra_bit_tokens == 75 and found.token_bias


def test_multiply_adds_are_those_of_the_matrix_products():
    """Counted by running them: one per number of a weight matrix for one position."""
    from torch.utils.flop_counter import FlopCounterMode

    shape = ModelShape(64, 300)
    found = DecisionConfig.for_budget(shape, 0.3)
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=300, bos_token_id=0, eos_token_id=0))

    def counted(layer):
        with FlopCounterMode(display=False) as counter:
            layer(torch.zeros(1, 64))
        return counter.get_total_flops() // 2

    assert counted(model.lm_head) == shape.softmax_weights
    codehead.attach(model, found, packed=False, statistics=Statistics(torch.arange(300)))
    assert counted(lambda hidden: model.decision.logits(model.lm_head(hidden))) == found.multiply_adds(shape)


@settings(deadline=None)
@given(shape=SHAPES, bits=st.integers(18, 200))
def test_a_codeword_length_comes_with_what_a_budget_would_add(shape, bits):
    try:
        found = DecisionConfig.for_bits(shape, bits)
    except ConfigurationError:
        assert shape.num_classes * bits / 8 + bits * shape.hidden_size / 2 > shape.num_classes * shape.hidden_size
        return
    code = shape.num_classes * -(-bits // 8) + bits * (shape.hidden_size * bits_of(found) // 8 + 2)
    whole = 2 * shape.hidden_size * shape.num_classes
    assert found.bits == bits and found.size(shape).bytes_stored <= min(whole, code / CODE_SHARE)
    if bits % 8 == 0 and code < CODE_SHARE * whole:
        again = DecisionConfig.for_budget(shape, (code + 1) / CODE_SHARE / whole)
        assert again.bits == bits or again.weights != found.weights


def test_any_codeword_length_that_tells_tokens_apart():
    assert DecisionConfig.for_bits(ModelShape(160, 8192), 50).bits == 50
    with pytest.raises(ConfigurationError, match="8,192 tokens need at least 13"):
        DecisionConfig.for_bits(ModelShape(160, 8192), 12)
    with pytest.raises(ConfigurationError, match="of the Softmax head's bytes; give fewer"):
        DecisionConfig.for_bits(ModelShape(64, 300), 700)


@settings(deadline=None)
@given(shape=SHAPES, times=st.floats(0.5, 60))
def test_a_speed_is_kept_and_a_longer_code_would_not(shape, times):
    try:
        found = DecisionConfig.for_speed(shape, times)
    except ConfigurationError:
        least = 8 * -(-(shape.num_classes - 1).bit_length() // 8)
        assert least * (shape.hidden_size + shape.num_classes) * times > shape.hidden_size * shape.num_classes * 0.35
        return
    whole = shape.hidden_size * shape.num_classes
    assert found.multiply_adds(shape) * times <= whole * (1 + 1e-9)
    assert found.size(shape).bytes_stored <= 2 * whole
    if found.bits < 1024:
        try:
            longer = DecisionConfig.for_bits(shape, found.bits + 8)
        except ConfigurationError:
            return
        assert longer.multiply_adds(shape) * times > whole * (1 - 1e-9)


def test_a_speed_too_high_names_the_highest():
    shape = ModelShape(160, 8192)
    with pytest.raises(ConfigurationError, match=r"comes to (\d+\.\d) times; give no more") as told:
        DecisionConfig.for_speed(shape, 50)
    highest = float(str(told.value).split("comes to ")[1].split(" times")[0])
    assert DecisionConfig.for_speed(shape, highest).bits == 16
    with pytest.raises(ConfigurationError, match="speed is nan"):
        DecisionConfig.for_speed(shape, float("nan"))


def test_a_budget_too_small_for_codewords_names_the_least():
    with pytest.raises(ConfigurationError, match=r"8,192 codewords of 16 bits and the head for them take 0\.68%"):
        DecisionConfig.for_budget(ModelShape(160, 8192), 0.005)
    assert DecisionConfig.for_budget(ModelShape(160, 8192), 0.0078).bits == 16
    for share, told in ((1e-9, "1e-07%"), ("0.0123%", "0.0123%")):
        with pytest.raises(ConfigurationError, match=f"^budget is {told} of"):
            DecisionConfig.for_budget(ModelShape(640, 262_144), share)


@settings(deadline=None)
@given(shape=SHAPES, share=st.floats(1e-6, 0.5), times=st.floats(2, 1e6))
def test_the_remedies_of_refused_budgets_and_speeds_work(shape, share, times):
    """What an error says to give instead is taken."""
    try:
        DecisionConfig.for_budget(shape, share)
    except ConfigurationError as error:
        least = float(re.search(r"take ([\d.]+)%; give", str(error))[1]) / 100
        assert least > 1 or DecisionConfig.for_budget(shape, least).byte_share(shape) <= least + 1e-6
    try:
        DecisionConfig.for_speed(shape, times)
    except ConfigurationError as error:
        highest = float(re.search(r"comes to ([\d.]+) times", str(error))[1])
        found = DecisionConfig.for_speed(shape, highest) if highest else None
        assert found is None or found.multiply_adds(shape) * highest <= shape.softmax_weights


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan"), "0%", "101%", "5 %", "٥%", "five", True, None])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ConfigurationError, match=r"budget is .*; give a share of the old head's bytes, such as 5%"):
        DecisionConfig.for_budget(ModelShape(160, 8192), share)


@pytest.mark.parametrize("times", [0, -1, float("nan"), float("inf"), "4 x", "0x", "fast", True, None])
def test_impossible_speeds_are_refused(times):
    with pytest.raises(ConfigurationError, match=r"speed is .*; give how many times fewer multiply-adds, such as 4x"):
        DecisionConfig.for_speed(ModelShape(160, 8192), times)


def test_budgets_and_speeds_are_read_from_text():
    shape = ModelShape(160, 8192)
    assert len({DecisionConfig.for_budget(shape, some).name(8192) for some in ("5%", "0.05", ".05", 0.05)}) == 1
    assert DecisionConfig.for_speed(shape, "2.5x") == DecisionConfig.for_speed(shape, "2.5")
    assert DecisionConfig.for_speed(shape, "2.5") == DecisionConfig.for_speed(shape, 2.5)


def test_what_a_budget_does_not_choose_can_be_changed():
    found = DecisionConfig.for_budget(ModelShape(160, 8192), "5%")
    assert (found.code, found.loss, found.start, found.packed) == ("additive", "codeword", "old_head", True)
    changed = DecisionConfig.for_budget(ModelShape(160, 8192), "5%", code="itq", seed=3, packed=False)
    assert changed == replace(found, code="itq", seed=3, packed=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DecisionConfig.for_bits(ModelShape(64, 300), "64"), "bits is '64'; give a whole number"),
        (lambda: DecisionConfig.for_bits(ModelShape(64, 300), True), "bits is True; give a whole number"),
        (
            lambda: DecisionConfig.for_budget(ModelShape(64, 300), "20%", bitss=5),
            "no field 'bitss'; did you mean 'bits'",
        ),
        (lambda: DecisionConfig.for_budget("some/model"), "the model is 'some/model'; give a transformers model"),
        (lambda: ModelShape(True, 300), "hidden_size of the model is True; give a whole number"),
        (lambda: ModelShape(64, float("nan")), "num_classes of the model is nan; give a whole number"),
    ],
)
def test_what_is_no_number_or_field_is_refused(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()
