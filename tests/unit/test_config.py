from __future__ import annotations

from pathlib import Path

import pytest

from codehead.config import DecisionConfig
from codehead.config.blocks import parse_assignment
from codehead.errors import ConfigurationError
from codehead.training.config import RunConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
YAML = """
model: {model_type: gpt2, n_embd: 32}
tokenizer: {train: bpe, vocab_size: 300}
data: {train: a.txt, block_size: 16}
decision: {code: minrandom, bits: 24}
training: {learning_rate: 3e-4, max_steps: 10}
output_dir: out
"""


@pytest.fixture
def yaml_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return path


def test_yaml_is_read_with_numbers_as_numbers(yaml_file):
    config = RunConfig.from_yaml(yaml_file)
    assert config.training == {"learning_rate": 0.0003, "max_steps": 10}
    assert config.data.block_size == 16
    assert config.adapt == "full"
    assert config.is_pretraining


def test_overrides_win_over_the_file(yaml_file):
    overrides = {"training.learning_rate": 1.0, "data.block_size": 8, "decision": None, "lora.r": 2}
    config = RunConfig.from_yaml(yaml_file, overrides)
    assert config.training["learning_rate"] == 1.0
    assert config.training["max_steps"] == 10
    assert config.data.block_size == 8
    assert config.decision is None
    assert config.lora.r == 2


def test_to_dict_and_back(yaml_file):
    config = RunConfig.from_yaml(yaml_file)
    assert RunConfig.from_dict(config.to_dict()) == config
    calibrated = RunConfig.from_yaml(yaml_file, {"calibrate.per_bit": False, "data.validation_fraction": 0.1})
    assert RunConfig.from_dict(calibrated.to_dict()) == calibrated != config


def test_a_key_that_older_runs_do_not_know_is_told_only_if_it_is_set(yaml_file):
    """Runs are found by the checksum of these values."""
    assert "calibrate" not in RunConfig.from_yaml(yaml_file).to_dict()


def test_finetuning_defaults_to_lora():
    values = {"model": "some/model", "data": {"train": "a.txt"}, "output_dir": "o"}
    assert RunConfig.from_dict(values).adapt == "lora"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"modle": "x"}, r"unknown key 'modle'; did you mean 'model'\?"),
        ({"data.blok_size": 3}, r"unknown key 'data.blok_size'; did you mean 'block_size'\?"),
        ({"lora.rank": 3}, "unknown key 'lora.rank'"),
        ({"decision.bit": 3}, r"unknown key 'decision.bit'; did you mean 'bits'\?"),
        ({"training.learning_rat": 3}, r"'training.learning_rat'; did you mean 'learning_rate'\?"),
        ({"training.output_dir": "x"}, "set output_dir at the top level"),
        ({"training.seed": 3}, "set seed at the top level"),
        ({"training.label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1, which no coded head"),
        ({"training.use_liger_kernel": True}, "use_liger_kernel is True, which no coded head"),
        ({"data.block_size": 1}, "data.block_size is 1; give a whole number of at least 2"),
        ({"data.block_size": True}, "data.block_size is True"),
        ({"data.validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"data.validation": "b.txt", "data.validation_fraction": 0.1}, "both set"),
        ({"data": None}, r"missing: data\.train"),
        ({"data": "a.txt"}, "data is 'a.txt'; it must be a block"),
        ({"data": "a.txt", "data.block_size": 8}, "data is 'a.txt'; it must be a block"),
        ({"decision": "minrandom", "decision.bits": 8}, "decision is 'minrandom'; it must be a block"),
        ({"decision": {"head_params": 1}, "decision.head_params.bias": True}, "decision.head_params is 1; it must"),
        ({"training": "sgd"}, "training is 'sgd'; it must be a block"),
        ({"training": False}, "training is False; it must be a block"),
        ({"model": {"n_embd": 3}}, "without model_type"),
        ({"model": 3}, "model is 3"),
        ({"tokenizer": None}, "tokenizer is missing"),
        ({"tokenizer": {"train": "unigram", "vocab_size": 300}}, "the only kind is 'bpe'"),
        ({"tokenizer.vocab_size": 100}, "tokenizer.vocab_size is 100; give a whole number of at least 257"),
        ({"adapt": "lora"}, "a new model has nothing to adapt"),
        ({"adapt": "ful"}, r"unknown adapt 'ful'; did you mean 'full'\?"),
        ({"seed": -1}, "seed is -1"),
        ({"dtype": "floot32"}, r"unknown dtype 'floot32'; did you mean 'float32'\?"),
        ({"output_dir": ""}, "output_dir is ''"),
        ({"training.max_steps": "abc"}, "training.max_steps is 'abc'; give a whole number"),
        ({"training.max_steps": 2.5}, r"training.max_steps is 2\.5; give a whole number"),
        ({"training.learning_rate": "abc"}, "training.learning_rate is 'abc'; give a number"),
        ({"training.bf16": 1}, "training.bf16 is 1; give true or false"),
        ({"lora.alpha": "abc"}, "lora.alpha is 'abc'; give a number"),
        ({"lora.dropout": "abc"}, "lora.dropout is 'abc'; give a number"),
        ({"data.validation": 5}, "data.validation is 5; give text or null"),
        ({"lora.target_modules": 5}, "lora.target_modules is 5; give auto, or names"),
        ({"tokenizer": 5}, "tokenizer is 5; give a hub id"),
        ({"distil.stepz": 3}, r"unknown key 'distil.stepz'; did you mean 'steps'\?"),
        ({"distil": {"steps": 10}}, "distil is set, but a new model has no trained head"),
        ({"decision.start": "old_head"}, "decision.start is set, but a new model has no trained head"),
        ({"model": "m", "distil": {"steps": 10}, "decision": None}, "no new decision layer to learn"),
        ({"decision.head_params": 3}, "head_params is 3; give a block"),
        ({"training.eval_strategy": "steps"}, "eval_strategy is 'steps', which needs validation data"),
        ({"calibrate": {}}, "calibrate is .*, which needs validation data"),
        ({"calibrate": {}, "decision.code": "one_vs_all"}, "has as many bits as tokens"),
        ({"calibrate.tokens": 0}, "calibrate.tokens is 0; give a whole number"),
        ({"calibrate.per_bit": 1}, "calibrate.per_bit is 1; give true or false"),
        ({"seed": 2**32}, "seed is 4294967296; give a whole number of at most 4294967295"),
        ({"training.data_seed": -1}, "training.data_seed is -1; give a whole number of at least 0"),
        ({"data.max_documents": 2**70}, "data.max_documents is .*; give a number of at most"),
        ({"tokenizer.vocab_size": 10**12}, "tokenizer.vocab_size is 1000000000000; give a whole number of at most"),
        ({"training.learning_rate": float("nan")}, "training.learning_rate is nan; give a finite number"),
        ({"training.weight_decay": float("-inf")}, "training.weight_decay is -inf; give a finite number"),
        ({"training.neftune_noise_alpha": -1.0}, "training.neftune_noise_alpha is -1.0; give a number from 0 to"),
        ({"training.learning_rate": -1}, "training.learning_rate is -1; give a number from 0"),
        ({"training.adam_beta1": 2}, "training.adam_beta1 is 2; give a number from 0 to below 1"),
        ({"training.save_steps": 0}, "training.save_steps is 0; give a number of steps, or a share of all"),
        ({"training.max_steps": 2**40}, "training.max_steps is 1099511627776; give at most"),
        ({"training.lr_scheduler_kwargs": [1]}, r"training.lr_scheduler_kwargs is \[1\]; it must be a block"),
        ({"training.resume_from_checkpoint": "x"}, "resumes from its own last checkpoint"),
        ({"decision.code": ["gray"]}, r"code is \['gray'\]; give a name"),
        ({"decision.code_params": {3: 4}}, r"code_params is \{3: 4\}; give a block"),
        ({"decision.code_params": {"bits": 4}}, "code_params has 'bits', which is a field of the decision layer"),
        ({"decision.seed": -1}, "decision: seed is -1"),
        ({"model": {"model_type": ["gpt2"]}}, "without model_type"),
        ({"model": {"model_type": "gpt2", 3: 4}}, "model has the key 3; a key is text"),
        ({"model": {"model_type": "gpt2", "resid_pdrop": float("nan")}}, "model.resid_pdrop is nan"),
        ({"lora.target_modules": [3]}, r"lora.target_modules is \[3\]; give auto, or names"),
        ({"lora.r": 10**12}, "lora.r is 1000000000000; give a whole number of at most"),
        ({"tokenizer": ""}, "tokenizer is ''; give a hub id"),
        ({"data.validation": ""}, "data.validation is ''; give a hub id"),
        ({"calibrate.token": 1}, r"unknown key 'calibrate.token'; did you mean 'tokens'\?"),
    ],
)
def test_mistakes_are_named(yaml_file, override, message):
    with pytest.raises(ConfigurationError, match=message):
        RunConfig.from_yaml(yaml_file, override)


def test_evaluation_needs_validation_data_of_either_kind(yaml_file):
    overrides = {"training.eval_strategy": "steps", "training.warmup_steps": 3, "training.save_total_limit": None}
    for key, value in (("validation", "b.txt"), ("validation_fraction", 0.1)):
        assert RunConfig.from_yaml(yaml_file, {**overrides, f"data.{key}": value}).training["eval_strategy"] == "steps"
    RunConfig.from_yaml(yaml_file, {"training.eval_strategy": "no"})


def test_missing_keys_are_named():
    with pytest.raises(ConfigurationError, match="missing: model, output_dir"):
        RunConfig.from_dict({"data": {"train": "a"}})


def test_softmax_may_be_smoothed(yaml_file):
    overrides = {"decision": None, "training.label_smoothing_factor": 0.1}
    assert RunConfig.from_yaml(yaml_file, overrides).training["label_smoothing_factor"] == 0.1


def test_yaml_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.yaml").write_text("model: m\noutput_dir: o\ndata: {train: a.txt}", encoding="utf-8-sig")
    assert RunConfig.from_yaml(tmp_path / "a.yaml").model == "m"


@pytest.mark.parametrize("text", ["a: " + "[" * 3000, "a: 2020-13-45", f"a: {'1' * 6000}", "? [a]\n: b"])
def test_yaml_that_python_cannot_hold(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match="is not valid YAML"):
        RunConfig.from_yaml(tmp_path / "a.yaml")


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none\.yaml' does not exist"):
        RunConfig.from_yaml(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ConfigurationError, match="not valid YAML"):
        RunConfig.from_yaml(broken)
    broken.write_text("- a")
    with pytest.raises(ConfigurationError, match="must hold `key: value` lines"):
        RunConfig.from_yaml(broken)
    with pytest.raises(ConfigurationError, match=r"cannot be read \(.*name another"):
        RunConfig.from_yaml(tmp_path)
    broken.write_bytes(b"a: \xff")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        RunConfig.from_yaml(broken)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.learning_rate=3e-4", ("training.learning_rate", 3e-4)),
        ("training.bf16=true", ("training.bf16", True)),
        ("decision=null", ("decision", None)),
        ("lora.target_modules=[q_proj, v_proj]", ("lora.target_modules", ["q_proj", "v_proj"])),
        ("data.train=a=b.txt", ("data.train", "a=b.txt")),
    ],
)
def test_assignments(text, expected):
    assert parse_assignment(text) == expected


def test_an_assignment_needs_an_equals_sign():
    with pytest.raises(ConfigurationError, match="key=value"):
        parse_assignment("training.bf16")


def test_an_assignment_of_broken_yaml_names_the_key():
    with pytest.raises(ConfigurationError, match=r"^a is '\[1', which is not valid YAML \(expected ',' or '\]'"):
        parse_assignment("a=[1")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid(path):
    assert RunConfig.from_yaml(path).training


@pytest.mark.parametrize(("name", "field"), [("int8", "weights"), ("int4", "weights"), ("packed", "packed")])
def test_what_a_head_ended_as_in_version_0_1_is_a_field_of_it(name: str, field: str) -> None:
    values = {"model": "m", "output_dir": "o", "data": {"train": "t"}, "decision": {"bits": 9}}
    found = RunConfig.from_dict({**values, name: True})
    assert found.decision == DecisionConfig(bits=9, **{field: True if name == "packed" else name})
    assert RunConfig.from_dict({**values, name: False}) == RunConfig.from_dict(values)
    with pytest.raises(ConfigurationError, match=f"{name} is 'no'; give true or false"):
        RunConfig.from_dict({**values, name: "no"})
    with pytest.raises(ConfigurationError, match=f"{name} is given, but there is no new decision layer"):
        RunConfig.from_dict({**values, name: True, "decision": None})


def test_weights_end_in_one_kind_of_integers() -> None:
    values = {"model": "m", "output_dir": "o", "data": {"train": "t"}, "decision": {"bits": 9}}
    with pytest.raises(ConfigurationError, match=r"decision\.int4 is true, but weights is int8"):
        RunConfig.from_dict({**values, "int8": True, "int4": True})
    with pytest.raises(ConfigurationError, match=r"decision\.int4 is true, but weights is int8"):
        RunConfig.from_dict({**values, "decision": {"bits": 9, "weights": "int8"}, "int4": True})


def test_steps_of_the_backbone_have_had_another_name() -> None:
    values = {"model": "m", "output_dir": "o", "data": {"train": "t"}, "decision": {"bits": 9}}
    old = RunConfig.from_dict({**values, "distil": {"trunk_steps": 3, "trunk_learning_rate": 0.1}})
    new = RunConfig.from_dict({**values, "distil": {"backbone_steps": 3, "backbone_learning_rate": 0.1}})
    assert old == new and new.distil.backbone_steps == 3
