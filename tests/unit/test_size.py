from __future__ import annotations

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

import codehead
from codehead.evaluation.size import (
    Configuration,
    configuration_size,
    decision_size,
    model_size,
    usual_configurations,
)

H, V = 2048, 50_272


def test_parameters_are_those_of_the_paper():
    sizes = {c.label: configuration_size(H, V, c).head_parameters for c in usual_configurations(V)}
    assert sizes == {
        "Softmax": 102_957_056,
        "Minimal ECOC (16, 0)": 32_768,
        "MinRandom ECOC (50, 0)": 102_400,
        "MinRandom ECOC (100, 0)": 204_800,
        "Minimal MTL-ECOC (16, 512)": 16_785_408,
        "MinRandom MTL-ECOC (50, 512)": 52_454_400,
    }


def test_bytes_of_a_linear_head():
    size = configuration_size(H, V, Configuration("MinRandom ECOC", 50))
    weights, packed, unpacked = 2 * 102_400, V * 7, V * 50 * 4
    assert size.codebook_bytes == packed
    assert size.bytes_stored == weights + packed
    assert size.bytes_resident == weights + packed + unpacked
    assert size.bytes_read_per_token == weights + unpacked


def test_softmax_has_no_codebook():
    size = configuration_size(H, V, usual_configurations(V)[0])
    assert size.codebook_bytes == 0
    assert size.bytes_stored == size.bytes_resident == size.bytes_read_per_token == 2 * H * V


def test_a_ternary_code_counts_its_support():
    binary, ternary = (decision_size(64, 1000, 20, ternary=ternary) for ternary in (False, True))
    assert ternary.codebook_bytes == 2 * binary.codebook_bytes == 2 * 1000 * 3
    assert ternary.bytes_read_per_token - binary.bytes_read_per_token == 1000 * 20 * 4


def test_what_a_decoder_has_learnt_is_resident_and_read():
    """Of a loss-weighted decoder: a count in int32 for every bit of every token, and one for every token."""
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=100, bos_token_id=0, eos_token_id=0)
    plain, fitted = (
        model_size(codehead.attach(GPT2LMHeadModel(config), bits=20, decoder=decoder))
        for decoder in ("likelihood", "loss_weighted_linear")
    )
    learnt = 4 * (100 * 20 + 100)
    assert fitted.bytes_resident - plain.bytes_resident == learnt
    assert fitted.bytes_read_per_token - plain.bytes_read_per_token == learnt
    assert (fitted.head_parameters, fitted.codebook_bytes) == (plain.head_parameters, plain.codebook_bytes)


@pytest.mark.parametrize(("classes", "bits"), [(2, 1), (3, 2), (10, 4), (16, 4), (17, 5), (50_272, 16)])
def test_minimal_bits(classes, bits):
    assert usual_configurations(classes)[1].bits == bits


def test_a_shortlist_and_a_bias_per_token_count():
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=100, bos_token_id=0, eos_token_id=0)
    layers = ({"loss": "codeword"}, {"loss": "codeword", "dense_rows": [1, 2, 3], "token_bias": True})
    plain, corrected = (
        model_size(codehead.attach(GPT2LMHeadModel(config), bits=20, **layer), weight_bytes=2) for layer in layers
    )
    assert corrected.head_parameters - plain.head_parameters == 3 * 16 + 100
    for name in ("bytes_stored", "bytes_resident", "bytes_read_per_token"):
        assert getattr(corrected, name) - getattr(plain, name) == 2 * (3 * 16 + 100) + 3 * 4
