"""Coded models in the tools around transformers: Trainer, PEFT, compile, checkpointing."""

from __future__ import annotations

import types
import warnings

import numpy as np
import pytest
import torch
from architectures import CONFIGS, VOCAB, make, tokens
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import codehead
from codehead.errors import ConfigurationError
from codehead.models.hidden import Statistics
from codehead.models.stock import head_path
from codehead.training.model import attention_projections

# transformers renamed its switches; PEFT and the Trainer still use the old names.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")

LAYERS = {
    "linear": {"code": "minrandom", "bits": 24},
    "mtl": {"code": "minrandom", "bits": 24, "head": "mtl", "width": 3},
    "mtl in groups": {"code": "minrandom", "bits": 24, "head": "mtl", "width": 12, "head_params": {"groups": 5}},
    "ternary": {"code": "sparse_random", "bits": 44, "loss": "codeword"},
    "adaptive": {
        "code": "one_vs_all",
        "bits": None,
        "head": "adaptive",
        "head_params": {"cutoffs": [20, 60]},
        "loss": "codeword",
        "statistics": Statistics(torch.arange(VOCAB)),
    },
}
LAYER = pytest.mark.parametrize("layer", LAYERS)


def examples(count=8, length=7):
    """Examples of different numbers of labels."""
    ids = tokens(count, length)
    labels = ids.clone()
    for row in range(count):
        labels[row, : row % 4] = -100
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def trainer(model, folder, **options):
    arguments = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "dataloader_pin_memory": False,
        **options.pop("arguments", {}),
    }
    data = options.pop("data", None) or examples()
    return Trainer(model=model, args=TrainingArguments(**arguments), train_dataset=data, eval_dataset=data, **options)


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@LAYER
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt_350m"])
def test_trainer_trains_saves_and_resumes(name, layer, coded, tmp_path):
    model = coded(name, **LAYERS[layer])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run = trainer(model, tmp_path, arguments={"max_steps": 8, "save_strategy": "steps", "save_steps": 8})
    run.train()
    assert losses(run)[-1] < losses(run)[0]
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert "lm_head.weight" in changed
    assert not [key for key in changed if key.startswith("decision.")]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-8")
    assert torch.equal(loaded(input_ids=tokens()).logits, model.eval()(input_ids=tokens()).logits)
    again = trainer(coded(name, **LAYERS[layer]), tmp_path, arguments={"max_steps": 9})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert again.state.global_step == 9


@LAYER
def test_evaluation_sees_token_logits(layer, coded, tmp_path):
    seen = {}

    def compute_metrics(prediction):
        seen["shape"] = prediction.predictions.shape
        hits = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
        return {"accuracy": hits[prediction.label_ids[:, 1:] != -100].mean()}

    model, data = coded(**LAYERS[layer]), examples()
    metrics = trainer(model, tmp_path, compute_metrics=compute_metrics).evaluate()
    ids, labels = torch.tensor(data["input_ids"]), torch.tensor(data["labels"])
    with torch.no_grad():
        outputs = model(input_ids=ids, labels=labels)
    valid = labels[:, 1:] != -100
    expected = (outputs.logits[:, :-1].argmax(-1) == labels[:, 1:])[valid].float().mean()
    assert seen["shape"] == (8, 7, VOCAB)
    assert metrics["eval_accuracy"] == pytest.approx(float(expected))
    assert np.isfinite(metrics["eval_loss"])


@LAYER
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_accumulation_changes_nothing(name, layer, coded, tmp_path):
    """One batch of eight and four of two: the examples have different numbers of labels, so means of means differ."""
    results = []
    for size, steps in ((8, 1), (2, 4)):
        model = coded(name, **LAYERS[layer])
        run = trainer(
            model,
            tmp_path,
            arguments={
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": steps,
                "optim": "sgd",
                "max_grad_norm": 0.0,
            },
        )
        run.train()
        results.append((losses(run), model.state_dict()))
    (whole_losses, whole), (split_losses, split) = results
    assert split_losses == pytest.approx(whole_losses, rel=1e-3)
    for key, value in whole.items():
        torch.testing.assert_close(split[key], value, rtol=1e-4, atol=1e-5)


def test_label_smoothing_is_refused_where_it_is_another_loss(coded, tmp_path):
    run = trainer(coded(), tmp_path, arguments={"label_smoothing_factor": 0.1, "max_steps": 1})
    with pytest.raises(ConfigurationError, match="label_smoothing_factor=0"):
        run.train()
    smooth = trainer(coded(loss="codeword"), tmp_path, arguments={"label_smoothing_factor": 0.1, "max_steps": 1})
    smooth.train()  # of the posterior anyway


def test_liger_in_the_trainer_is_refused(coded, tmp_path, monkeypatch):
    """What transformers does for use_liger_kernel=True, with a stand-in for liger_kernel."""
    source = types.FunctionType(
        (lambda self, **kw: None).__code__, {"__name__": "liger_kernel.transformers.model.llama"}
    )

    def apply(model, config):
        model.forward = types.MethodType(source, model)

    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", apply)
    run = trainer(coded(), tmp_path, arguments={"use_liger_kernel": True})
    with pytest.raises(ConfigurationError, match="fused_linear_cross_entropy"):
        run.train()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("name", "layer"), [*(("llama", layer) for layer in LAYERS), *((name, "linear") for name in CONFIGS)]
)
def test_lora_trains_saves_reloads_and_merges(name, layer, tied, coded, tmp_path):
    def base():
        return coded(name, tied=tied, **LAYERS[layer])

    plain = base()
    targets = attention_projections(plain)
    is_transposed = not isinstance(plain.get_submodule(targets[0]), torch.nn.Linear)
    settings = LoraConfig(r=2, target_modules=targets, modules_to_save=[head_path(plain)], fan_in_fan_out=is_transposed)
    model = get_peft_model(plain, settings)
    before = model.get_output_embeddings().weight.detach().clone()
    trainer(model, tmp_path / "run").train()
    assert not torch.equal(model.get_output_embeddings().weight, before)
    expected = model.eval()(input_ids=tokens()).logits
    assert expected.shape == (2, 7, VOCAB)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base(), str(tmp_path / "adapter"))
    assert torch.equal(loaded.eval()(input_ids=tokens()).logits, expected)
    merged = loaded.merge_and_unload()
    assert codehead.is_coded(merged)
    torch.testing.assert_close(merged(input_ids=tokens()).logits, expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(again(input_ids=tokens()).logits, merged(input_ids=tokens()).logits)


def test_lora_that_leaves_a_new_head_frozen_is_told_once(coded):
    ids = tokens()
    model = get_peft_model(
        codehead.attach(make("llama"), "minrandom", bits=24), LoraConfig(r=2, target_modules=["q_proj"])
    ).train()
    with pytest.warns(UserWarning, match=r"untrained and frozen.*modules_to_save=\['lm_head'\]"):
        model(input_ids=ids, labels=ids)
    model(input_ids=ids, labels=ids)  # warnings are errors


@pytest.mark.parametrize("settings", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}])
def test_lora_that_trains_the_head_is_not_warned_of(settings):
    ids = tokens()
    model = codehead.attach(make("llama", tied=False), "minrandom", bits=24)
    get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **settings})).train()(
        input_ids=ids, labels=ids
    )


def test_a_frozen_head_that_is_trained_or_old_is_not_warned_of(coded):
    ids = tokens()
    for model in (coded(), codehead.attach(make("llama"), "minrandom", bits=24, start="old_head")):
        model.get_output_embeddings().requires_grad_(False)
        model.train()(input_ids=ids, labels=ids)


def test_lora_generates_and_returns_the_loss_of_the_decision_layer(coded):
    model = get_peft_model(coded("llama", tied=False), LoraConfig(r=2, target_modules=["q_proj"])).eval()
    ids = tokens()
    base = coded("llama", tied=False)
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, base(input_ids=ids, labels=ids).loss)
    found = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert torch.equal(found, base.generate(ids, max_new_tokens=3, do_sample=False))


@LAYER
def test_gradient_checkpointing_gives_the_same_gradients(layer, coded):
    gradients = []
    for checkpointing in (False, True):
        model = coded("llama", **LAYERS[layer]).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=tokens(), labels=tokens(), use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.slow
@LAYER
def test_compile_gives_the_same_results_without_graph_breaks(layer, coded):
    torch.compiler.reset()  # forward is compiled a few times at most, whatever the model
    ids = tokens()
    model = coded("llama", **LAYERS[layer])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        found = compiled(input_ids=ids, labels=ids)
        expected = model(input_ids=ids, labels=ids)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-4)
        compiled.train()
        found = compiled(input_ids=ids, labels=ids)
        found.loss.backward()
        assert "logits" not in found
        assert model.get_output_embeddings().weight.grad.abs().sum() > 0
