"""Codes that look at the classes, in a model: where their prototypes come from, and that checkpoints hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from architectures import VOCAB, make, tokens
from transformers import AutoModelForCausalLM

import codehead
from codehead import codes
from codehead.errors import ConfigurationError
from codehead.models.hidden import Statistics

DESIGNS = [name for name in codes.DESIGNS.names() if "prototypes" in codes.DESIGNS.get(name).params()]
OPTIONS = {"ecoc_one": {"confusion": np.random.default_rng(0).integers(9, size=(VOCAB, VOCAB))}}


def head_rows(model):
    return model.get_output_embeddings().weight.detach().float().numpy().copy()


@pytest.mark.parametrize("code", DESIGNS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_rows_of_the_head_are_the_prototypes(code, tied):
    model = make("llama", tied)
    options = OPTIONS.get(code, {})
    expected = codes.build(code, VOCAB, prototypes=head_rows(model), **options)
    codehead.attach(model, code, code_params=options)
    assert model.decision.table.to_codebook().checksum == expected.checksum
    assert model.config.quantization_config["decision"]["code_params"]["prototypes"] == expected.params["prototypes"]


def test_half_precision_rows():
    model = make("llama").to(torch.bfloat16)
    expected = codes.build("itq", VOCAB, bits=24, prototypes=head_rows(model))
    codehead.attach(model, "itq", bits=24)
    assert model.config.quantization_config["codebook"]["checksum"] == expected.checksum


def test_given_prototypes_come_first(tmp_path):
    rows = np.random.default_rng(0).standard_normal((VOCAB, 9)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    expected = codes.build("itq", VOCAB, bits=16, seed=3, prototypes=rows)
    for source in (rows, str(tmp_path / "rows.npy")):
        model = codehead.attach(make("llama"), "itq", bits=16, seed=3, code_params={"prototypes": source})
        assert model.config.quantization_config["codebook"]["checksum"] == expected.checksum


@pytest.mark.parametrize("params", [{}, {"parity": 12}], ids=str)
def test_a_checkpoint_reloads_without_its_prototypes(params, tmp_path):
    model = codehead.attach(make("llama"), "itq", bits=20, code_params=params)
    model.save_pretrained(tmp_path)
    entry = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert entry["decision"]["bits"] == 20
    assert entry["codebook"]["length"] == 20 + params.get("parity", 0)
    assert entry["decision"]["code_params"]["prototypes"]["shape"] == [VOCAB, 16]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens()).logits, model(input_ids=tokens()).logits)


def test_like_rows_of_the_head_get_like_codewords():
    model = make("llama", tied=False)
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        rows[VOCAB // 2 :] = rows[: VOCAB // 2] + 0.01
    symbols = codehead.attach(model, "itq", bits=32).decision.table.signs().numpy()
    apart = (symbols[: VOCAB // 2] != symbols[VOCAB // 2 :]).sum(axis=1)
    assert apart.mean() < 4  # of 32, where 16 is chance


def test_a_head_without_weights_is_told():
    with torch.device("meta"):
        model = make("llama", tied=False)
    with pytest.raises(ConfigurationError, match="on the meta device; give code_params="):
        codehead.attach(model, "itq", bits=24)


def test_a_head_of_equal_rows_is_told():
    model = make("llama", tied=False)
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    with pytest.raises(ConfigurationError, match="all rows of prototypes are equal"):
        codehead.attach(model, "itq", bits=24)
    assert not codehead.is_coded(model)


def test_samples_take_the_place_of_the_rows():
    samples = np.random.default_rng(0).standard_normal((2 * VOCAB, 5))
    labels = np.arange(2 * VOCAB) % VOCAB
    model = codehead.attach(make("llama"), "decoc", code_params={"samples": samples, "labels": labels})
    expected = codes.build("decoc", VOCAB, samples=samples, labels=labels)
    assert model.config.quantization_config["codebook"]["checksum"] == expected.checksum


# Which token gets which codeword


@pytest.mark.parametrize("method", ["identity", "random", "frequency", "similar_near", "similar_far"])
def test_codewords_are_dealt_out_by_the_method(method):
    model, counts = make("llama", tied=False), torch.arange(VOCAB).double()
    rows = head_rows(model)
    plain = codes.build("minrandom", VOCAB, bits=16, seed=2)
    expected = codes.assign(plain, method, prototypes=rows, counts=counts.numpy(), seed=2)
    codehead.attach(model, "minrandom", bits=16, seed=2, assignment=method, statistics=Statistics(counts))
    entry = model.config.quantization_config
    assert entry["codebook"]["checksum"] == expected.checksum
    assert entry["decision"]["code_params"]["assignment"] == expected.params["assignment"]
    assert (expected.checksum == plain.checksum) == (method == "identity")


def test_frequencies_are_asked_for():
    with pytest.raises(ConfigurationError, match="assignment='frequency' needs token counts: give statistics"):
        codehead.attach(make("llama"), "minrandom", assignment="frequency")


def test_an_assignment_that_looks_at_a_head_without_weights_is_told():
    with torch.device("meta"):
        model = make("llama", tied=False)
    with pytest.raises(ConfigurationError, match="on the meta device; choose another method"):
        codehead.attach(model, "minrandom", assignment="similar_far")


def test_an_unknown_assignment_is_told():
    with pytest.raises(ConfigurationError, match="unknown method 'similar'"):
        codehead.attach(make("llama"), "minrandom", assignment="similar")
