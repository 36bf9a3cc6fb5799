"""Sums looked up in packed planes against those of the unpacked bits, and what packed tables keep in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import codehead
from codehead.codes import build
from codehead.codes.packing import pack_bits
from codehead.codes.table import CodewordTable, bit_sums
from codehead.errors import ConfigurationError
from codehead.evaluation.size import model_size
from codehead.heads import build as build_head
from codehead.layer import DecisionLayer


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 70), st.integers(0, 2**16), st.booleans())
def test_sums_are_those_of_the_unpacked_bits(length, rows, positions, seed, wide):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (rows, length)).astype(bool)
    weights = torch.from_numpy(rng.normal(size=(positions, length))).to(torch.float64 if wide else torch.float32)
    found = bit_sums(weights, torch.from_numpy(pack_bits(bits)))
    assert found.dtype == weights.dtype
    tolerance = 1e-12 if wide else 1e-5
    torch.testing.assert_close(found, weights @ torch.from_numpy(bits).to(weights).T, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 2**18 // 5, 2**18 // 5 + 1])
def test_rows_beyond_one_chunk(rows):
    plane = torch.randint(0, 256, (rows, 5), dtype=torch.uint8)
    weights = torch.randn(40, dtype=torch.float64)
    bits = torch.from_numpy(np.unpackbits(plane.numpy(), axis=1, bitorder="little")).double()
    torch.testing.assert_close(bit_sums(weights, plane), bits @ weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("design", ["minrandom", "sparse_random"])
def test_packed_tables_keep_no_copy_but_for_gradients(design):
    table = CodewordTable(build(design, 60, candidates=1))
    table.packed = True
    weights = torch.randn(3, table.length)
    expected = weights @ table.signs().T
    table.reset_cache()
    torch.testing.assert_close(table.product(weights), expected, rtol=1e-5, atol=1e-5)
    assert not table._copies
    weights.requires_grad_()
    table.product(weights).sum().backward()
    assert not table._copies
    torch.testing.assert_close(weights.grad, table.signs().sum(0).expand(3, -1))


def test_a_decision_packs_every_table_it_has_and_weighs_what_it_stores():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=90, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = codehead.attach(
        LlamaForCausalLM(config),
        "minrandom",
        bits=14,
        loss="codeword",
        extra_bit_tokens=list(range(20)),
        extra_bits=12,
        dense_rows=[3],
    ).eval()
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        expected, unpacked = model(ids).logits, model_size(model)
        model.decision.packed = True
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    tables = [module for module in model.modules() if isinstance(module, CodewordTable)]
    assert len(tables) == 2
    assert not any(table._copies for table in tables)
    size = model_size(model)
    assert size.bytes_resident == size.bytes_read_per_token == size.bytes_stored == unpacked.bytes_stored
    assert unpacked.bytes_resident - size.bytes_resident == 4 * (90 * 14 + 20 * 12)
    model.decision.packed = False
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("code", "head", "decoder", "message"),
    [
        ("one_vs_all", "linear", "likelihood", "has no codewords that could stay packed"),
        ("minimal", "chain", "likelihood", "a chain needs the codewords unpacked"),
        ("minrandom", "linear", "inverse_hamming", "decoder 'inverse_hamming' needs the codewords unpacked"),
    ],
)
def test_what_cannot_stay_packed_is_refused(code, head, decoder, message):
    codebook = build(code, 30, **({"bits": 12} if code == "minrandom" else {}))
    options = {"width": 4} if head == "chain" else {}
    layer = DecisionLayer(codebook, build_head(head, 8, codebook.length, **options), "codeword", decoder)
    with pytest.raises(ConfigurationError, match=message):
        layer.decision.packed = True
    assert not layer.decision.packed


def test_a_decoder_that_unpacks_is_refused_while_packed():
    layer = DecisionLayer(build("minrandom", 30, bits=12), build_head("linear", 8, 12))
    layer.decision.packed = True
    with pytest.raises(ConfigurationError, match="inverse_hamming"):
        layer.decision.decoder_name = "inverse_hamming"
    assert layer.decision.decoder_name == "likelihood"


def test_packed_codewords_compile_and_choose_the_same_tokens():
    layer = DecisionLayer(build("minrandom", 200, bits=20, candidates=1), build_head("linear", 8, 20))
    hidden = torch.randn(5, 8)
    expected = layer.decode(hidden, k=3).ids
    layer.decision.packed = True
    assert torch.equal(layer.decode(hidden, k=3).ids, expected)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(hidden), layer(hidden))
