"""The one description of a decision layer: what it refuses, how it is read and written, what it weighs, its names."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import codehead
from codehead.cli.options import OPTIONS_OF, decision_options
from codehead.cli.options import given as given_options
from codehead.codes import build
from codehead.config import DecisionConfig, ModelShape
from codehead.errors import ConfigurationError
from codehead.evaluation.size import USUAL, model_size
from codehead.models.hidden import Statistics

HIDDEN, V = 16, 100
SHAPE = ModelShape(HIDDEN, V)
PAPER = ModelShape(2048, 50_272)
NAMES = [entry.name for entry in fields(DecisionConfig)]


def small_model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=HIDDEN, n_layer=1, n_head=2, vocab_size=V, bos_token_id=0, eos_token_id=0))


# -- what it may be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"code": 3}, "code is 3; give a name, or omit it"),
        ({"code": ["gray"]}, r"code is \['gray'\]; give a name, or omit it"),
        ({"code": "minrandm"}, "unknown design 'minrandm'; did you mean 'minrandom'"),
        ({"bits": 0}, "bits is 0; give a whole number of at least 1"),
        ({"bits": 2.0}, r"bits is 2\.0; give a whole number"),
        ({"bits": True}, "bits is True; give a whole number"),
        ({"bits": "8"}, "bits is '8'; give a whole number"),
        ({"code_params": [3]}, r"code_params is \[3\]; give a block"),
        ({"code_params": {3: 4}}, r"code_params is \{3: 4\}; give a block"),
        ({"code_params": {"bits": 4}}, "code_params has 'bits', which is a field of the decision layer"),
        ({"code_params": {"seed": 4}}, "code_params has 'seed', which is a field"),
        ({"code_params": {"candidates": float("nan")}}, "code_params.candidates is nan; give a finite number"),
        ({"code_params": {"parity": "x"}}, "code_params.parity is 'x'; give a whole number of at least 0"),
        ({"assignment": 3}, "assignment is 3; give a name, or omit it"),
        ({"assignment": "frequncy"}, "unknown method 'frequncy'; did you mean 'frequency'"),
        ({"head": None}, "head is None; give a name"),
        ({"head": "mlt"}, "unknown head 'mlt'; did you mean 'mtl'"),
        ({"width": 0}, "width is 0; give a whole number of at least 1"),
        ({"head_params": "bias"}, "head_params is 'bias'; give a block"),
        ({"head_params": {"width": 3}}, "head_params has 'width', which is a field of the decision layer"),
        ({"head_params": {"div_value": float("inf")}}, "head_params.div_value is inf; give a finite number"),
        ({"width": 3}, "head 'linear' has no option 'width'. Its options: bias"),
        ({"head_params": {"bias": "maybe"}}, "bias='maybe' is not possible for head 'linear'; give true or false"),
        ({"head_params": {"bais": True}}, "head 'linear' has no option 'bais'; did you mean 'bias'"),
        ({"head": "mtl", "width": 3, "head_params": {"groups": "x"}}, "groups='x' is not possible for head 'mtl'"),
        ({"dense_rows": b"x"}, "dense_rows is b'x'; give a number of tokens"),
        ({"dense_rows": 2**70}, "dense_rows is 11805.*; give a number of tokens"),
        ({"dense_rows": [1, 1]}, r"dense_rows is \(1, 1\); give every token id once"),
        ({"loss": 3}, "loss is 3; give a name"),
        ({"loss": "bitwize"}, "unknown loss 'bitwize'; did you mean 'bitwise'"),
        ({"decoder": ["hamming"]}, r"decoder is \['hamming'\]; give a name"),
        ({"decoder": "hammin"}, "unknown decoder 'hammin'; did you mean 'hamming'"),
        ({"token_bias": "no"}, "token_bias is 'no'; give true or false"),
        ({"token_bias": 1}, "token_bias is 1; give true or false"),
        ({"dense_rows": -1}, "dense_rows is -1; give a number of tokens, or a list of token ids"),
        ({"dense_rows": "many"}, "dense_rows is 'many'; give a number of tokens, or a list of token ids"),
        ({"dense_rows": [1, 2.5]}, r"dense_rows is \(1, 2\.5\); give a number of tokens, or a list of token ids"),
        ({"dense_rows": [True]}, r"dense_rows is \(True,\); give a number of tokens"),
        ({"dense_rows": True}, "dense_rows is True; give a number of tokens"),
        ({"dense_rows": None}, "dense_rows is None; give a number of tokens"),
        ({"extra_bits": -1}, "extra_bits is -1; give a whole number of at least 0"),
        ({"extra_bits": 8}, "extra_bits is 8 and extra_bit_tokens is 0; give both, or neither"),
        ({"extra_bit_tokens": 9}, "extra_bits is 0 and extra_bit_tokens is 9; give both, or neither"),
        ({"extra_bits": 8, "extra_bit_tokens": [-1]}, r"extra_bit_tokens is \(-1,\); give a number of tokens"),
        ({"start": "old_hed"}, "unknown start 'old_hed'; did you mean 'old_head'.* Known: random, old_head"),
        ({"start": "logistic"}, "unknown start 'logistic'"),
        ({"start": True}, "start is True; give a name"),
        ({"weights": "int9"}, "unknown weights 'int9'; did you mean 'int8'"),
        ({"packed": "yes"}, "packed is 'yes'; give true or false"),
        ({"seed": -1}, "seed is -1; give a whole number of at least 0"),
        ({"seed": 1.0}, r"seed is 1\.0; give a whole number"),
        ({"seed": 2**32}, r"seed is 4294967296; give a whole number below 2\^32"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_remedy(values, message):
    with pytest.raises(ConfigurationError, match=message):
        DecisionConfig(**values)
    with pytest.raises(ConfigurationError, match=message):
        DecisionConfig.from_fields(values)


@pytest.mark.parametrize("option", ["bias", "token_bias"])
def test_a_bias_that_is_neither_true_nor_false_is_refused_by_attach(option):
    fields = {"token_bias": "maybe"} if option == "token_bias" else {"head_params": {"bias": "maybe"}}
    model = small_model()
    with pytest.raises(ConfigurationError, match=r"bias.*'maybe'.* true or false"):
        codehead.attach(model, code="minrandom", bits=20, **fields)
    assert not codehead.is_coded(model)


def test_numbers_of_numpy_and_torch_are_numbers():
    config = DecisionConfig(bits=np.int64(20), token_bias=np.bool_(True), dense_rows=np.array([3, 1]))
    assert config == DecisionConfig(bits=20, token_bias=True, dense_rows=(3, 1))
    assert DecisionConfig(dense_rows=torch.tensor([3, 1])).dense_rows == (3, 1)
    assert json.loads(json.dumps(config.to_dict())) == {"bits": 20, "token_bias": True, "dense_rows": [3, 1]}
    with pytest.raises(ConfigurationError, match=r"bits is 2\.5"):
        DecisionConfig(bits=np.float64(2.5))


def test_it_is_frozen_and_apart_from_what_it_was_built_from():
    options = {"candidates": 2}
    config = DecisionConfig(code="minrandom", code_params=options)
    options["candidates"] = 3
    assert config.code_params == {"candidates": 2}
    for name in NAMES:
        with pytest.raises(FrozenInstanceError):
            setattr(config, name, getattr(config, name))
    with pytest.raises(ConfigurationError, match="bits is 0"):
        replace(config, bits=0)


# -- how it is read and written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bit": 3}, "a decision layer has no field 'bit'; did you mean 'bits'"),
        ({"nonsense": 3}, "a decision layer has no field 'nonsense'; known are code, bits, "),
        ({"shortlist": 3}, "shortlist is called dense_rows now; write dense_rows=3"),
        ({"refined": 3}, "refined is called extra_bit_tokens now"),
        ({"refined_bits": 3}, "refined_bits is called extra_bits now"),
        ({"token_scale": True}, "token_scale was an option of version 0.1 .*; omit it"),
        ({"shortlist_split": True}, "shortlist_split was an option of version 0.1 .*; omit it"),
    ],
)
def test_a_keyword_that_is_no_field_is_named(values, message):
    with pytest.raises(ConfigurationError, match=message):
        DecisionConfig.from_fields(values)
    with pytest.raises(ConfigurationError, match=message):
        codehead.attach(small_model(), "minrandom", **values)


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        ({}, {}),
        ({"code": None, "bits": None, "head_params": None}, {}),
        ({"keep_head": True, "bits": 9}, {"bits": 9}),
        ({"shortlist": 4}, {"dense_rows": 4}),
        ({"shortlist": [4, 1]}, {"dense_rows": (4, 1)}),
        ({"refined": 40, "refined_bits": 8}, {"extra_bits": 8, "extra_bit_tokens": 40}),
        ({"refined": 40}, {"extra_bits": 64, "extra_bit_tokens": 40}),
        ({"refined_bits": 64}, {}),
        ({"refined": 0, "refined_bits": 64}, {}),
        ({"int4": True}, {"weights": "int4"}),
        ({"int8": True, "int4": False}, {"weights": "int8"}),
        ({"head": "tower", "width": 8}, {"head": "mtl", "width": 8, "head_params": {"groups": 1}}),
        (
            {"head": "tower", "width": 8, "head_params": {"groups": 2, "bias": True}},
            {"head": "mtl", "width": 8, "head_params": {"groups": 2, "bias": True}},
        ),
        ({"token_scale": False, "shortlist_split": False}, {}),
    ],
)
def test_a_block_of_version_0_1_means_what_it_meant(block, fields):
    assert DecisionConfig.from_dict(block) == DecisionConfig(**fields)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (3, "decision is 3; it must be a block"),
        ({"bit": 3}, r"unknown key 'decision.bit'; did you mean 'bits'"),
        ({3: 4}, "decision has the key 3; a key is text"),
        ({"token_scale": True}, "decision.token_scale was an option of version 0.1 .*; remove it"),
        ({"shortlist_split": True}, "decision.shortlist_split was an option of version 0.1 .*; remove it"),
        ({"shortlist": 3, "dense_rows": 4}, "decision.shortlist is called dense_rows now, and both are given"),
        ({"extra_bits": 8}, "extra_bits is 8 and extra_bit_tokens is 0; give both, or neither"),
        ({"int8": True, "int4": True}, "decision.int4 is true, but weights is int8; omit one"),
        ({"int4": "no"}, "decision.int4 is 'no'; give true or false"),
        ({"head": "tower", "head_params": 3}, "head_params is 3; give a block"),
        ({"start": "logistic"}, "unknown start 'logistic'"),
    ],
)
def test_a_block_that_cannot_be_read_is_refused_by_key(block, message):
    with pytest.raises(ConfigurationError, match=message):
        DecisionConfig.from_dict(block)


TOKENS = st.one_of(st.integers(0, 1000), st.lists(st.integers(0, 1000), min_size=1, max_size=4, unique=True))
PLAIN = st.one_of(
    st.integers(-9, 9), st.booleans(), st.text(max_size=3), st.floats(allow_nan=False, allow_infinity=False)
)
OPTIONS = st.dictionaries(st.sampled_from(["bias", "block", "rank", "candidates"]), PLAIN, max_size=2)
EXTRA = st.one_of(
    st.just({}), st.fixed_dictionaries({"extra_bits": st.integers(1, 99), "extra_bit_tokens": st.integers(1, 999)})
)
HEAD = st.sampled_from([
    {}, {"head_params": {"bias": True}}, {"head": "low_rank", "head_params": {"rank": 4}},
    {"head": "mtl", "width": 8, "head_params": {"groups": 2, "bias": True}}, {"head": "chain", "width": 64},
    {"head": "adaptive", "head_params": {"cutoffs": [5, 9], "div_value": 2.5}},
])  # fmt: skip
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "code": st.sampled_from(["minrandom", "additive", "one_vs_all", "learned", "somewhere/code.safetensors"]),
        "bits": st.integers(1, 2000),
        "code_params": OPTIONS,
        "assignment": st.sampled_from(["frequency", "similar_near"]),
        "loss": st.sampled_from(["bitwise", "codeword"]),
        "decoder": st.sampled_from(["likelihood", "hamming"]),
        "token_bias": st.booleans(),
        "dense_rows": TOKENS,
        "start": st.sampled_from(["random", "old_head"]),
        "weights": st.sampled_from(["float", "int8", "int4"]),
        "packed": st.booleans(),
        "seed": st.integers(0, 2**32 - 1),
    },
)


@settings(deadline=None)
@given(values=FIELDS, extra=EXTRA, head=HEAD)
def test_it_is_written_as_plain_values_and_read_back(values, extra, head):
    config = DecisionConfig(**values, **extra, **head)
    written = json.loads(json.dumps(config.to_dict()))
    assert DecisionConfig.from_dict(written) == config == DecisionConfig.from_fields(written)
    assert all(written[name] != getattr(DecisionConfig(), name) for name in written)


def test_the_default_is_written_as_nothing():
    assert DecisionConfig().to_dict() == {} and DecisionConfig.from_dict({}) == DecisionConfig()


def test_every_field_is_an_option_of_the_command():
    @decision_options
    def attach(model: str, **decision: object) -> None:
        """Take options."""

    app = typer.Typer()
    app.command()(attach)
    found = typer.main.get_command(app).params
    options = {parameter.name: parameter for parameter in found if "completion" not in parameter.name}
    assert list(options) == ["model", *NAMES]
    for entry in fields(DecisionConfig):
        option = options[entry.name]
        flag = {"code_params": "--param", "head_params": "--head-param"}.get(
            entry.name, "--" + entry.name.replace("_", "-")
        )
        assert option.opts == [flag] and option.help == entry.metadata["help"]
        assert option.secondary_opts == ([f"--no-{flag[2:]}"] if entry.type == "bool" else [])


def test_options_that_are_given_are_fields():
    parameters = dict.fromkeys(NAMES) | {
        "bits": 9, "token_bias": False, "code_params": ["candidates=2", "parity=3"], "head_params": [],
    }  # fmt: skip
    found = {"bits": 9, "token_bias": False, "code_params": {"candidates": 2, "parity": 3}}
    assert given_options(parameters) == found
    for name, flag in OPTIONS_OF.items():
        with pytest.raises(ConfigurationError, match=f"{flag} 'bias' is not KEY=VALUE"):
            given_options({**parameters, name: ["bias"]})


# -- what it is called ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"code": "minrandom", "bits": 50, "head": "mtl", "width": 512}, "MinRandom MTL-ECOC (50, 512)"),
        ({"code": "minrandom", "bits": 50}, "MinRandom ECOC (50, 0)"),
        ({"bits": 50}, "MinRandom ECOC (50, 0)"),
        ({"code": "minimal"}, "Minimal ECOC (16, 0)"),
        ({"code": "dense_random"}, "Dense random ECOC (157, 0)"),
        ({"code": "ecoc_one", "bits": 60}, "ECOC-ONE (60, 0)"),
        ({"code": "decoc", "bits": 60, "head": "mtl", "width": 8}, "DECOC MTL-ECOC (60, 8)"),
        ({"code": "additive", "bits": 40, "code_params": {"parity": 8}}, "Additive ECOC (40 + 8, 0)"),
        ({"code": "minimal", "head": "chain", "width": 64}, "Minimal chain (16, 64)"),
        ({"code": "learned", "bits": 40}, "Learned ECOC (40, 0)"),
        ({"code": "one_vs_all"}, "Softmax"),
        ({"code": "one_vs_all", "head": "low_rank", "head_params": {"rank": 64}}, "Low rank 64"),
        ({"code": "one_vs_all", "head": "adaptive", "head_params": {"cutoffs": [9]}}, "Adaptive softmax [9]"),
        ({"code": "one_vs_all", "head": "mtl", "width": 8}, "One-vs-All MTL-ECOC (50272, 8)"),
    ],
)
def test_names_are_those_of_the_paper(values, name):
    assert DecisionConfig(**values).name(PAPER.num_classes) == name


def test_in_tables_it_is_called_by_its_share_of_the_bytes():
    assert DecisionConfig.for_budget(PAPER, "5%").short_name(PAPER) == "code 5%"
    assert DecisionConfig(code="minimal").short_name(PAPER) == "code 0.081%"


def test_in_a_line_it_tells_what_it_is_made_of():
    told = DecisionConfig.for_budget(PAPER, "5%").told(PAPER)
    assert told.startswith("H = 2,048, V = 50,272: ")
    for part in (" bits, ", "extra bits for the 12,568", "dense rows for", "a bias for every token", "weights in int4"):
        assert part in told
    plain = DecisionConfig(code="minimal").told(SHAPE)
    assert plain == (
        f"H = 16, V = 100: 7 bits, weights in float. {2 * 7 * HIDDEN + V:,} bytes, 10.12% of the Softmax head's "
        "3,200 in bf16."
    )


# -- what it costs ----------------------------------------------------------------------------------------------------

ROWS = {"loss": "codeword", "dense_rows": 3, "token_bias": True}
LONGER = {"extra_bits": 9, "extra_bit_tokens": 25}
LAYERS = {
    "one_vs_all": {"code": "one_vs_all"},
    "one_vs_all with a bias": {"code": "one_vs_all", "head_params": {"bias": True}},
    "low rank": {"code": "one_vs_all", "loss": "codeword", "head": "low_rank", "head_params": {"rank": 5}},
    "adaptive": {
        "code": "one_vs_all", "loss": "codeword", "head": "adaptive", "head_params": {"cutoffs": [10, 40], "bias": True}
    },
    "minrandom": {"code": "minrandom", "bits": 21},
    "minimal": {"code": "minimal"},
    "with a bias": {"code": "minrandom", "bits": 21, "head_params": {"bias": True}},
    "parity": {"code": "minrandom", "bits": 21, "code_params": {"parity": 6}},
    "mtl": {"code": "minrandom", "bits": 21, "head": "mtl", "width": 6},
    "mtl with a bias": {"code": "minrandom", "bits": 21, "head": "mtl", "width": 6, "head_params": {"bias": True}},
    "mtl in groups": {"code": "minrandom", "bits": 21, "head": "mtl", "width": 6, "head_params": {"groups": 3}},
    "chain": {"code": "minimal", "head": "chain", "width": 6},
    "chain in blocks": {"code": "minimal", "head": "chain", "width": 6, "head_params": {"block": 3}},
    "low rank code": {"code": "minrandom", "bits": 21, "head": "low_rank", "head_params": {"rank": 5, "bias": True}},
    "ternary": {"code": "sparse_random", "bits": 60},
    "decoc": {"code": "decoc"},
    "dense rows and a bias": {"code": "minrandom", "bits": 21, **ROWS},
    "extra bits": {"code": "additive", "bits": 21, **ROWS, **LONGER},
    "mtl and extra bits": {"code": "additive", "bits": 21, "head": "mtl", "width": 6, **ROWS, **LONGER},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the head does not apply")
@pytest.mark.parametrize("weights", ["float", "int8", "int4"])
@pytest.mark.parametrize("name", LAYERS)
def test_its_size_is_that_of_the_model_that_is_built(name, weights):
    config = DecisionConfig(**LAYERS[name], weights=weights)
    if config.code == "decoc":
        config = replace(config, bits=V - 1)
    model = codehead.attach(small_model(), config, statistics=Statistics(torch.arange(V)))
    {"float": lambda model: model, "int8": codehead.to_int8, "int4": codehead.to_int4}[weights](model)
    size = config.size(SHAPE)
    assert size == model_size(model, weight_bytes=2)
    assert config.byte_share(SHAPE) == size.bytes_stored / (2 * HIDDEN * V)
    if config.code != "one_vs_all" and config.head != "chain":
        model.decision.packed = True
        assert replace(config, packed=True).size(SHAPE) == size.packed == model_size(model, weight_bytes=2)


def test_sizes_of_the_paper_are_its_parameters():
    found = {config.name(PAPER.num_classes): config.size(PAPER).head_parameters for config in USUAL}
    assert found == {
        "Softmax": 102_957_056,
        "Minimal ECOC (16, 0)": 32_768,
        "MinRandom ECOC (50, 0)": 102_400,
        "MinRandom ECOC (100, 0)": 204_800,
        "Minimal MTL-ECOC (16, 512)": 16_785_408,
        "MinRandom MTL-ECOC (50, 512)": 52_454_400,
    }


def test_bytes_of_a_linear_head():
    size = DecisionConfig(code="minrandom", bits=50).size(PAPER)
    weights, packed, unpacked = 2 * 102_400, PAPER.num_classes * 7, PAPER.num_classes * 50 * 4
    assert size.codebook_bytes == packed
    assert size.bytes_stored == weights + packed
    assert size.bytes_resident == weights + packed + unpacked
    assert size.bytes_read_per_token == weights + unpacked


def test_softmax_has_no_codebook():
    size = DecisionConfig(code="one_vs_all").size(PAPER)
    assert size.codebook_bytes == 0
    assert size.bytes_stored == size.bytes_resident == size.bytes_read_per_token == PAPER.softmax_bytes
    assert DecisionConfig(code="one_vs_all").multiply_adds(PAPER) == PAPER.softmax_weights


def test_a_ternary_code_counts_its_support():
    binary, ternary = (DecisionConfig(code=code, bits=60).size(SHAPE) for code in ("dense_random", "sparse_random"))
    assert ternary.codebook_bytes == 2 * binary.codebook_bytes == 2 * V * 8
    assert ternary.bytes_read_per_token - binary.bytes_read_per_token == V * 60 * 4


@pytest.mark.parametrize(("classes", "bits"), [(2, 1), (3, 2), (10, 4), (16, 4), (17, 5), (50_272, 16)])
def test_minimal_bits(classes, bits):
    assert DecisionConfig(code="minimal").length(classes) == bits


def test_the_length_of_a_saved_codebook_must_be_given(tmp_path):
    build("minimal", V).save(tmp_path / "code.safetensors")
    config = DecisionConfig.from_fields({"code": tmp_path / "code.safetensors"})
    with pytest.raises(ConfigurationError, match=r"code is '.*code.safetensors', whose length is known .* give bits"):
        config.size(SHAPE)
    model = codehead.attach(small_model(), replace(config, bits=7))
    assert model_size(model, weight_bytes=2) == replace(config, bits=7).size(SHAPE)


def test_what_a_decoder_has_learnt_is_resident_and_read():
    """Of a loss-weighted decoder: a count in int32 for every bit of every token, and one for every token."""
    plain, fitted = (
        model_size(codehead.attach(small_model(), "minrandom", bits=20, decoder=decoder))
        for decoder in ("likelihood", "loss_weighted_linear")
    )
    learnt = 4 * (V * 20 + V)
    assert fitted.bytes_resident - plain.bytes_resident == learnt
    assert fitted.bytes_read_per_token - plain.bytes_read_per_token == learnt
    assert (fitted.head_parameters, fitted.codebook_bytes) == (plain.head_parameters, plain.codebook_bytes)


def test_dense_rows_and_a_bias_per_token_count():
    layer = {"code": "minrandom", "bits": 20, "loss": "codeword"}
    plain, corrected = (
        DecisionConfig(**layer, **extra).size(SHAPE) for extra in ({}, {"dense_rows": [1, 2, 3], "token_bias": True})
    )
    assert corrected.head_parameters - plain.head_parameters == 3 * HIDDEN + V
    for name in ("bytes_stored", "bytes_resident", "bytes_read_per_token"):
        assert getattr(corrected, name) - getattr(plain, name) == 2 * (3 * HIDDEN + V) + 3 * 4


def test_what_a_file_gives_is_written_down_even_if_it_is_the_default():
    """A coded checkpoint with another loss is asked for this one."""
    config = DecisionConfig.from_dict({"loss": "bitwise"})
    assert config == DecisionConfig() and config.to_dict() == {"loss": "bitwise"}
    assert DecisionConfig.from_dict(config.to_dict()).to_dict() == {"loss": "bitwise"}


def test_equal_layers_are_one_key_of_a_dictionary():
    layers = [
        DecisionConfig(code="minrandom", bits=9, dense_rows=[3, 1], code_params={"candidates": n}) for n in (1, 1, 2)
    ]
    assert hash(layers[0]) == hash(DecisionConfig.from_dict(layers[0].to_dict()))
    assert len(set(layers)) == 2
    assert hash(layers[0]) != hash(DecisionConfig(code="minrandom", bits=10))
