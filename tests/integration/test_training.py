from __future__ import annotations

import json

import pytest
import torch
from small_runs import CODED, CORRECTED, StopAt, finetuning, log, losses, pretraining, weights

from codehead.errors import CodeheadError, ConfigurationError, DataError
from codehead.evaluation.metrics import evaluate
from codehead.models.hidden import hidden_states
from codehead.models.rounding import to_int4
from codehead.models.surgery import is_coded
from codehead.training.data import STATISTICS_TOKENS, Text, batch_size_of, load_rows, tokenize
from codehead.training.model import attention_projections, load_model
from codehead.training.run import train
from codehead.training.tokenizer import load_tokenizer

# --- what a run leaves behind


def test_a_run_leaves_a_loadable_checkpoint_and_its_record(pretrained):
    folder = pretrained["coded"]
    assert is_coded(load_model(str(folder)))
    assert not is_coded(load_model(str(pretrained["softmax"])))
    assert len(load_tokenizer(str(folder))) == 270
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["config"]["decision"] == CODED
    assert record["provenance"]["data"][0]["name"] == "stories.jsonl"
    assert len(losses(folder)) == 6
    assert losses(folder)[-1] < losses(folder)[0]


@pytest.mark.parametrize(
    ("decision", "measured"),
    [(CODED, "node_loss"), ({**CODED, "loss": "codeword"}, "nats"), (CORRECTED, "nats")],
    ids=["bitwise", "codeword", "corrected"],
)
@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_the_saved_model_is_the_trained_one(pretrained, stories, tmp_path, decision, measured, adapt):
    """The last eval_loss of the run is what the saved, merged, reloaded model gives in our own metrics."""
    data = {"train": stories, "validation_fraction": 0.2, "block_size": 32}
    config = finetuning(
        pretrained["softmax"],
        stories,
        tmp_path / "run",
        data=data,
        decision=decision,
        adapt=adapt,
    )
    folder = train(config, progress=False)
    tokenizer = load_tokenizer(str(folder))
    rows = load_rows(config.data, config.seed).validation
    result = evaluate(load_model(str(folder)), tokenizer, tokenize(rows, tokenizer, 32), batch_size=3)
    values = {"node_loss": result.node_loss, "nats": torch.tensor(result.perplexity).log().item()}
    eval_loss = [entry["eval_loss"] for entry in log(folder) if "eval_loss" in entry][-1]
    assert values[measured] == pytest.approx(eval_loss, rel=1e-4)


@pytest.mark.parametrize("kind", ["coded", "softmax"])
@pytest.mark.parametrize("adapt", ["lora", "head", "full"])
def test_adaptation_moves_only_what_it_should(pretrained, instructions, tmp_path, kind, adapt):
    before = weights(pretrained[kind])
    after = weights(train(finetuning(pretrained[kind], instructions, tmp_path / "run", adapt=adapt), progress=False))
    old_head = before.get("lm_head.weight", before["transformer.wte.weight"])
    assert not torch.equal(old_head, after.get("lm_head.weight", after["transformer.wte.weight"]))
    moved = {name for name in before if not torch.equal(before[name], after[name])} - {"lm_head.weight"}
    expected = {
        "head": set(),
        "lora": {f"transformer.h.0.attn.{part}.weight" for part in ("c_attn", "c_proj")},
        "full": {name for name in before if name != "lm_head.weight"},
    }
    assert moved == expected[adapt]


@pytest.mark.parametrize("adapt", ["lora", "head", "full"])
def test_a_shortlist_is_counted_on_the_training_labels_and_trained(pretrained, instructions, tmp_path, adapt):
    config = finetuning(pretrained["softmax"], instructions, tmp_path / "run", decision=CORRECTED, adapt=adapt)
    folder = train(config, progress=False)
    model = load_model(str(folder))
    examples = tokenize(load_rows(config.data, config.seed).train, load_tokenizer(str(folder)), config.data.block_size)
    counts = torch.tensor([label for example in examples for label in example["labels"] if label >= 0]).bincount(
        minlength=270
    )
    assert model.decision.corrections.shortlist.tolist() == counts.argsort(descending=True, stable=True)[:20].tolist()
    assert (model.get_output_embeddings().rows.weight != 0).any()
    start = ((counts + 1.0) / (counts + 1.0).sum()).log()
    assert not torch.allclose(model.decision.corrections.token_bias, start)
    torch.testing.assert_close(model.decision.corrections.token_bias, start, rtol=0, atol=1.0)  # it began there


def test_a_decision_layer_learns_from_the_old_head_before_the_training(pretrained, stories, tmp_path):
    data = {"train": stories, "validation_fraction": 0.2, "block_size": 32}

    def first_loss(name, **changes):
        training = {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 4}
        config = finetuning(pretrained["softmax"], stories, tmp_path / name, data=data, training=training, **changes)
        return [entry["eval_loss"] for entry in log(train(config, progress=False)) if "eval_loss" in entry][-1]

    softmax = first_loss("softmax")
    random = first_loss("random", decision={**CODED, "loss": "codeword"})
    learnt = first_loss("learnt", decision={**CORRECTED, "code": "itq"}, distil={"steps": 40, "tokens": 2000})
    assert abs(learnt - softmax) < 0.05 * (random - softmax)
    assert load_model(str(tmp_path / "learnt")).config.quantization_config["decision"]["code"] == "learned"


@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_a_run_is_calibrated_on_its_validation_data_before_it_is_saved(pretrained, stories, tmp_path, adapt):
    changes = {"data": {"train": stories, "validation_fraction": 0.2, "block_size": 32}, "adapt": adapt}
    changes |= {"calibrate": {"tokens": 10_000}, "decision": {**CODED, "bits": 60}}
    config = finetuning(pretrained["softmax"], stories, tmp_path / "run", **changes)
    folder = train(config, progress=False)
    found = json.loads((folder / "run.json").read_text())["calibration"]
    assert found["perplexity_after"] < found["perplexity_before"] and len(found["scales"]) == 60
    held_out = tokenize(load_rows(config.data, config.seed).validation, load_tokenizer(str(folder)), 32)
    measured = evaluate(load_model(str(folder)), load_tokenizer(str(folder)), held_out)
    assert measured.tokens == found["tokens"]
    assert measured.perplexity == pytest.approx(found["perplexity_after"], rel=1e-3)


def test_what_cannot_be_calibrated_is_told_before_the_training(pretrained, stories, tmp_path):
    changes = {"data": {"train": stories, "validation_fraction": 0.2, "block_size": 32}, "calibrate": {}}
    with pytest.raises(ConfigurationError, match="has no decision layer to calibrate"):
        train(finetuning(pretrained["softmax"], stories, tmp_path / "run", **changes), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_another_code(pretrained, stories, tmp_path):
    layer = {"code": "itq", "bits": 24, "start": "old_head"}
    config = finetuning(pretrained["softmax"], stories, tmp_path / "run", decision=layer)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False, callbacks=[StopAt(5)])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["provenance"]["codebook"]) == 64
    record["provenance"]["codebook"] = "0" * 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigurationError, match="began with the codebook 000"):
        train(config, progress=False)


@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_neither_training_nor_its_evaluation_is_as_wide_as_the_vocabulary(
    pretrained, stories, tmp_path, monkeypatch, adapt
):
    def refuse(self, bit_logits):
        raise AssertionError("logits over V tokens were formed")

    monkeypatch.setattr("codehead.layer.Decision.logits", refuse)
    data = {"train": stories, "validation_fraction": 0.2, "block_size": 32}
    config = finetuning(pretrained["coded"], stories, tmp_path / "run", data=data, adapt=adapt)
    assert any("eval_loss" in entry for entry in log(train(config, progress=False)))


def test_options_of_the_trainer_pass_through(stories, tmp_path):
    training = {
        "max_steps": 4,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "bf16": True,
        "use_cpu": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "load_best_model_at_end": True,
        "learning_rate": 0.01,
    }
    folder = train(pretraining(stories, tmp_path / "run", training=training), progress=False)
    evaluated = [entry["eval_loss"] for entry in log(folder) if "eval_loss" in entry]
    assert len(evaluated) == 3
    assert evaluated[-1] == pytest.approx(min(evaluated), rel=1e-4)


@pytest.mark.parametrize(("kind", "stored"), [("int8", torch.int8), ("int4", torch.uint8)])
@pytest.mark.parametrize("adapt", ["full", "head", "lora"])
def test_weights_are_rounded_after_mixed_precision(pretrained, stories, tmp_path, adapt, kind, stored):
    training = {"max_steps": 2, "per_device_train_batch_size": 2, "bf16": True, "use_cpu": True}
    changes = {"decision": {"bits": 24}, "adapt": adapt, "training": training, kind: True}
    config = finetuning(pretrained["softmax"], stories, tmp_path / "run", **changes)
    head = load_model(str(train(config, progress=False))).get_output_embeddings()
    assert {values.dtype for name, values in head.named_buffers() if "seal." not in name} == {stored}


def test_errors_of_int4_are_spread_by_what_the_trained_backbone_gives(pretrained, stories, tmp_path, monkeypatch):
    given = []

    def noted(model, hidden):
        given.append(hidden)
        return to_int4(model, hidden)

    monkeypatch.setattr("codehead.training.new_head.to_int4", noted)
    config = finetuning(pretrained["softmax"], stories, tmp_path / "run", decision=CODED, adapt="full", int4=True)
    model, tokenizer = load_model(str(train(config, progress=False))), load_tokenizer(str(tmp_path / "run"))
    rows = load_rows(config.data, config.seed).train
    text = Text.of(rows, tokenizer, config.data.block_size, "the text", config.seed)
    wanted = hidden_states(model, text.batches(batch_size_of(config)), STATISTICS_TOKENS)
    torch.testing.assert_close(given[0], wanted, rtol=1e-3, atol=1e-4)


def test_attention_projections_of_another_architecture():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=50,
        )
    )
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert attention_projections(model) == [f"model.layers.0.self_attn.{part}" for part in parts]


# --- mistakes


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (
            {"code": "minimal", "bits": None, "head": "chain", "width": 4},
            "a chain needs the codewords unpacked",
        ),
        ({"code": "one_vs_all", "bits": None, "loss": "codeword"}, "no codewords that could stay packed"),
    ],
)
def test_an_end_that_a_head_cannot_have_is_told_before_the_training(pretrained, stories, tmp_path, decision, message):
    decision = {**CODED, **decision}
    config = finetuning(pretrained["softmax"], stories, tmp_path / "run", decision=decision, packed=True)
    with pytest.raises(ConfigurationError, match=message):
        train(config, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_head_in_int8_is_not_rounded_again_after_a_training(pretrained, stories, tmp_path):
    first = finetuning(pretrained["softmax"], stories, tmp_path / "first", decision=CODED, int8=True)
    again = finetuning(
        train(first, progress=False), stories, tmp_path / "again", decision={"loss": "codeword"}, int8=True
    )
    with pytest.raises(ConfigurationError, match="int8 already; omit weights"):
        train(again, progress=False)
    assert not (tmp_path / "again").exists()


def test_a_coded_checkpoint_may_end_as_integers_and_packed(pretrained, stories, tmp_path):
    ends = {"weights": "int8", "packed": True}
    config = finetuning(pretrained["coded"], stories, tmp_path / "run", decision=ends, adapt="head")
    model = load_model(str(train(config, progress=False)))
    described = model.config.quantization_config["decision"]
    assert {name: described[name] for name in ends} == ends and described["code"] == "minrandom"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"model_type": "gpt22"}}, r"unknown model.model_type 'gpt22'; did you mean 'gpt2'\?"),
        ({"model": {"model_type": "gpt2", "n_emb": 3}}, r"unknown key 'model.n_emb'; did you mean 'n_embd'\?"),
        (
            {"model": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 100}},
            "tokenizer has 270 entries but the model only 100 embeddings",
        ),
        (
            {"model": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}},
            "block_size is 32, but the model takes at most 8 tokens",
        ),
        ({"training": {"max_steps": 2, "lr_scheduler_type": "nonsense"}}, "transformers refuses"),
        ({"decision": {"code": "minrandm"}}, "did you mean 'minrandom'"),
    ],
)
def test_mistakes_are_named(stories, tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        train(pretraining(stories, tmp_path / "run", **changes), progress=False)


def test_a_missing_model_is_named(stories, tmp_path, pretrained):
    config = finetuning(tmp_path / "none", stories, tmp_path / "run", tokenizer=str(pretrained["coded"]))
    with pytest.raises(ConfigurationError, match=r"model .*none' could not be loaded"):
        train(config, progress=False)


def test_missing_data_are_named_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        train(pretraining(str(tmp_path / "none.jsonl"), tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_softmax_options_are_refused_for_a_coded_checkpoint(pretrained, stories, tmp_path):
    training = {"max_steps": 2, "label_smoothing_factor": 0.1}
    config = finetuning(pretrained["coded"], stories, tmp_path / "run", training=training)
    with pytest.raises(ConfigurationError, match=r"label_smoothing_factor is 0\.1, which no coded head"):
        train(config, progress=False)


def test_lora_targets_that_match_nothing(pretrained, stories, tmp_path):
    config = finetuning(pretrained["coded"], stories, tmp_path / "run", lora={"target_modules": ["q_proj"]})
    with pytest.raises(ConfigurationError, match=r"\['q_proj'\] matches no module of GPT2LMHeadModel"):
        train(config, progress=False)


def test_a_diverged_run_stops_and_says_so(stories, tmp_path):
    training = {"max_steps": 6, "logging_steps": 1, "learning_rate": 1e9, "max_grad_norm": 0.0}
    with pytest.raises(CodeheadError, match=r"training loss is (nan|inf) at step \d.*learning_rate"):
        train(pretraining(stories, tmp_path / "run", training=training), progress=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()
