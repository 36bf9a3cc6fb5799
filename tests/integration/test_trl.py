"""Coded models in the trainers of TRL: the loss of the decision layer, log-probabilities of the codeword posterior."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from architectures import VOCAB, make, tokens
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import codehead
from codehead.errors import ConfigurationError
from codehead.models import trl_trainers
from codehead.training.model import attention_projections

trl = pytest.importorskip("trl", reason="TRL is not installed (pip install trl)")
# transformers renamed its switches; TRL still uses the old names.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")

LINEAR, MTL = {"code": "minrandom", "bits": 24}, {"code": "minrandom", "bits": 24, "head": "mtl", "width": 3}
ROWS = {**LINEAR, "dense_rows": [5, 3], "token_bias": True, "loss": "codeword"}
LAYERS = {
    "linear, bitwise": LINEAR,
    "linear, codeword": {**LINEAR, "loss": "codeword"},
    "mtl, bitwise": MTL,
    "mtl, codeword": {**MTL, "loss": "codeword"},
    "dense rows": ROWS,
    "chain": {"code": "minimal", "bits": None, "head": "chain", "width": 4, "loss": "codeword"},
    "one_vs_all": {"code": "one_vs_all", "bits": None, "loss": "codeword"},
}
LAYER = pytest.mark.parametrize("layer", LAYERS)
PROBABLE = pytest.mark.parametrize("layer", ["linear, codeword", "mtl, codeword", "dense rows", "chain"])
COMMON = {
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "dataloader_pin_memory": False,
    "gradient_checkpointing": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    model = Tokenizer(models.WordLevel({f"w{number:03}": number for number in range(VOCAB)}, unk_token="w000"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="w000", bos_token="w001", eos_token="w002")


def words(ids):
    return "".join(f"w{number:03} " for number in ids)


def examples(count=12):
    """Examples of different lengths and numbers of labels."""
    ids = [row[: 4 + number % 4].tolist() for number, row in enumerate(tokens(count, 8))]
    labels = [[-100] * (number % 3) + row[number % 3 :] for number, row in enumerate(ids)]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def preferences(count=4):
    ids = tokens(count, 12)
    parts = {"prompt": ids[:, :4], "chosen": ids[:, 4:8], "rejected": ids[:, 8:]}
    return Dataset.from_dict({name: [words(row.tolist()) for row in part] for name, part in parts.items()})


def plain_trainer(model, folder, tokenizer, **options):
    arguments = TrainingArguments(output_dir=str(folder), **COMMON, **options)
    collator = DataCollatorForSeq2Seq(tokenizer)
    return Trainer(model=model, args=arguments, train_dataset=examples(), data_collator=collator)


def sft(model, folder, tokenizer, peft_config=None, data=None, **options):
    arguments = trl.SFTConfig(
        output_dir=str(folder), **COMMON, dataset_kwargs={"skip_prepare_dataset": True}, **options
    )
    return trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=data or examples(),
        eval_dataset=examples(),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def dpo(model, folder, tokenizer, **options):
    arguments = trl.DPOConfig(output_dir=str(folder), **COMMON, max_steps=1, per_device_train_batch_size=4)
    return trl.DPOTrainer(
        model=model, args=arguments, train_dataset=preferences(), processing_class=tokenizer, **options
    )


def logged(run, name="loss"):
    return [entry[name] for entry in run.state.log_history if name in entry]


def log_probabilities(model, ids):
    """Of the tokens that follow, `(batch, length − 1)`, and the distributions that they are of."""
    logs = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    return logs.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1), logs


@LAYER
def test_sft_trains_what_the_trainer_trains(layer, coded, tokenizer, tmp_path):
    options = {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    plain, with_trl = coded(**LAYERS[layer]), coded(**LAYERS[layer])
    expected = plain_trainer(plain, tmp_path / "plain", tokenizer, **options)
    expected.train()
    run = sft(with_trl, tmp_path / "trl", tokenizer, **options)
    run.train()
    assert logged(run) == pytest.approx(logged(expected), abs=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(with_trl.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    assert run.evaluate()["eval_loss"] == pytest.approx(expected.evaluate(examples())["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("layer", ["linear, bitwise", "mtl, codeword"])
def test_sft_reports_entropy_and_top_1_accuracy(layer, coded, tokenizer, tmp_path):
    model = coded(**LAYERS[layer])
    batch = DataCollatorForSeq2Seq(tokenizer)(list(examples()))
    with torch.no_grad():
        logs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    run = sft(model, tmp_path, tokenizer, max_steps=1, per_device_train_batch_size=12)
    run.train()
    known = batch["labels"][:, 1:] != -100
    entropy = -(logs.exp() * logs).sum(-1)[:, :-1][known].mean()
    hits = (logs.argmax(-1)[:, :-1] == batch["labels"][:, 1:])[known].float().mean()
    assert logged(run, "entropy") == pytest.approx([float(entropy)], rel=1e-4)
    assert logged(run, "mean_token_accuracy") == pytest.approx([float(hits)])


@pytest.mark.parametrize("layer", ["linear, bitwise", "mtl, codeword"])
def test_sft_trains_adapters_and_the_head(layer, coded, tokenizer, tmp_path):
    model = coded(**LAYERS[layer])
    settings = LoraConfig(r=2, target_modules=attention_projections(model), modules_to_save=["lm_head"])
    run = sft(model, tmp_path / "run", tokenizer, settings, max_steps=8)
    before = {name: value.detach().clone() for name, value in run.model.named_parameters() if value.requires_grad}
    run.train()
    assert logged(run)[-1] < logged(run)[0]
    assert all(not torch.equal(value, before[name]) for name, value in run.model.named_parameters() if name in before)
    merged = run.model.merge_and_unload().eval()
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(loaded(input_ids=tokens()).logits, merged(input_ids=tokens()).logits)


def test_a_trained_model_is_detached_and_copied_like_any_other(coded, tokenizer, tmp_path):
    model = coded()
    sft(model, tmp_path, tokenizer, max_steps=1).train()
    twin = copy.deepcopy(model)
    assert torch.equal(twin.eval()(input_ids=tokens()).logits, model.eval()(input_ids=tokens()).logits)
    codehead.detach(model)
    assert not codehead.is_coded(model)


@LAYER
@pytest.mark.parametrize("scores_at_a_time", [VOCAB, 10**9], ids=["in pieces", "at once"])
def test_every_field_and_its_gradient_are_those_of_the_logits(layer, scores_at_a_time, coded, monkeypatch):
    monkeypatch.setattr(trl_trainers, "CHUNK_SCORES", scores_at_a_time)
    model, ids, temperature = coded(**{**LAYERS[layer], "loss": "codeword"}), tokens(), 0.7
    fields = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    trl.trainer.utils.add_fused_lm_head(model, temperature=temperature, outputs=fields)
    labels = ids.masked_fill(torch.arange(7) < 3, -100)
    found = model(input_ids=ids, labels=labels, fused_lm_head=True)
    scores = model(input_ids=ids).logits[:, :-1].float() / temperature
    logs, known = scores.log_softmax(-1), labels[:, 1:] != -100
    expected = {
        "log_probs": logs.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1),
        "entropy": -(logs.exp() * logs).sum(-1),
        "log_sum_sq_probs": (logs.exp() ** 2).sum(-1).log(),
        "mean_logits": scores.mean(-1),
        "is_top1": logs.argmax(-1) == ids[:, 1:],
    }
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values * known, rtol=1e-4, atol=1e-4)
    gradients = []
    for log_probs, entropy in (
        (found["log_probs"], found["entropy"]),
        (expected["log_probs"] * known, expected["entropy"] * known),
    ):
        model.zero_grad()
        (log_probs.sum() + 0.5 * entropy.sum()).backward()
        gradients.append([value.grad.clone() for value in model.parameters() if value.grad is not None])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_a_batch_without_labels_trains_nothing(coded):
    for loss in ("bitwise", "codeword"):
        model = coded(loss=loss)
        found = model(input_ids=tokens(), labels=torch.full((2, 7), -100), fused_lm_head=True)
        assert found.loss.item() == 0
        found.loss.backward()
        assert not model.get_output_embeddings().weight.grad.any()


def test_shifted_labels_are_not_shifted_again(coded):
    model, ids = coded(loss="codeword"), tokens()
    shifted = torch.nn.functional.pad(ids, (0, 1), value=-100)[:, 1:]
    found = model(input_ids=ids, shift_labels=shifted, fused_lm_head=True).log_probs
    torch.testing.assert_close(found[:, :-1], model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs)
    assert not found[:, -1].any()


def test_the_loss_of_mixtures_of_experts_reaches_the_trainer(coded, tokenizer, tmp_path):
    losses = []
    for coefficient in (0.0, 0.5):
        run = sft(coded("mixtral"), tmp_path, tokenizer, max_steps=1, router_aux_loss_coef=coefficient)
        run.train()
        losses += logged(run)
    assert losses[1] > losses[0] + 0.4  # of two experts it is at least 1


@pytest.mark.parametrize("loss_type", ["chunked_nll", "dft"])
def test_the_other_losses_of_sft(loss_type, coded, tokenizer, tmp_path):
    model, ids = coded(loss="codeword"), examples()
    with torch.no_grad():
        batch = DataCollatorForSeq2Seq(tokenizer)(list(ids))
        scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    taken = scores[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)[labels != -100]
    expected = -(taken * taken.exp()).mean() if loss_type == "dft" else -taken.mean()
    options = {"max_steps": 1, "per_device_train_batch_size": 12}
    with pytest.warns(FutureWarning, match="deprecated") if loss_type == "chunked_nll" else nullcontext():
        run = sft(model, tmp_path, tokenizer, loss_type=loss_type, **options)
    run.train()
    assert logged(run) == pytest.approx([float(expected)], rel=1e-4)


def test_dft_of_the_bitwise_loss_is_refused(coded, tokenizer, tmp_path):
    run = sft(coded(), tmp_path, tokenizer, max_steps=1, loss_type="dft")
    with pytest.raises(ConfigurationError, match="loss_name = 'codeword'"):
        run.train()


@pytest.mark.filterwarnings("ignore:.*label_smoothing_factor.*deprecated:FutureWarning")
def test_label_smoothing_is_that_of_the_posterior_or_refused(coded, tokenizer, tmp_path):
    options = {"max_steps": 2, "label_smoothing_factor": 0.1}
    with pytest.raises(ConfigurationError, match="label_smoothing_factor=0"):
        sft(coded(), tmp_path, tokenizer, **options).train()
    run = sft(coded(loss="codeword"), tmp_path, tokenizer, **options)
    run.train()
    plain = plain_trainer(coded(loss="codeword"), tmp_path, tokenizer, **options)
    plain.train()
    assert logged(run) == pytest.approx(logged(plain), abs=1e-5)


@PROBABLE
def test_dpo_compares_log_probabilities_of_the_posterior(layer, coded, tokenizer, tmp_path):
    model = coded(**LAYERS[layer])
    run = dpo(model, tmp_path, tokenizer, ref_model=copy.deepcopy(model))
    with torch.no_grad():
        found = {}
        for part in ("chosen", "rejected"):
            rows = [tokenizer(row["prompt"] + row[part], return_tensors="pt").input_ids for row in preferences()]
            ids = torch.cat([torch.cat(rows), torch.full((4, 1), 2)], dim=1)
            found[part] = float(log_probabilities(model.eval(), ids)[0][:, 3:].sum(-1).mean())
    run.train()
    assert logged(run) == pytest.approx([math.log(2)])
    assert logged(run, "logps/chosen") == pytest.approx([found["chosen"]], rel=1e-4)
    assert logged(run, "logps/rejected") == pytest.approx([found["rejected"]], rel=1e-4)


def test_dpo_with_adapters_has_the_coded_model_as_reference(coded, tokenizer, tmp_path):
    model = coded(loss="codeword")
    settings = LoraConfig(r=2, target_modules=attention_projections(model), modules_to_save=["lm_head"])
    run = dpo(model, tmp_path, tokenizer, peft_config=settings)
    run.train()
    assert logged(run) == pytest.approx([math.log(2)])


def test_dpo_of_a_saved_coded_model_loads_a_coded_reference(coded, tokenizer, tmp_path):
    coded(loss="codeword").save_pretrained(tmp_path / "coded")
    run = dpo(AutoModelForCausalLM.from_pretrained(tmp_path / "coded"), tmp_path / "run", tokenizer)
    assert codehead.is_coded(run.ref_model)
    run.train()
    assert logged(run) == pytest.approx([math.log(2)])


def test_a_stock_reference_of_a_model_coded_in_memory_is_refused(tokenizer, tmp_path):
    make("llama").save_pretrained(tmp_path / "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    model = codehead.attach(stock, loss="codeword", **LINEAR)
    with pytest.raises(ConfigurationError, match=r"ref_model=copy\.deepcopy\(model\)"):
        dpo(model, tmp_path / "run", tokenizer)
    dpo(model, tmp_path / "run", tokenizer, ref_model=make("llama"))  # as one wishes


def test_preferences_and_rewards_are_refused_for_the_bitwise_loss(coded, tokenizer, tmp_path):
    model = coded()
    before = copy.deepcopy(model.state_dict())
    for run in (
        dpo(model, tmp_path, tokenizer, ref_model=copy.deepcopy(model)),
        grpo(model, tmp_path, tokenizer),
    ):
        with pytest.raises(ConfigurationError, match="loss_name = 'codeword'"):
            run.train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def grpo(model, folder, tokenizer, **options):
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        **COMMON,
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        temperature=0.9,
        **options,
    )
    return trl.GRPOTrainer(
        model=model,
        args=arguments,
        reward_funcs=lambda completions, **_: torch.arange(float(len(completions))).tolist(),
        train_dataset=preferences().select_columns(["prompt"]),
        processing_class=tokenizer,
    )


@PROBABLE
def test_grpo_generates_and_trains_on_the_posterior(layer, coded, tokenizer, tmp_path):
    model = coded(**LAYERS[layer])
    run = grpo(model, tmp_path, tokenizer)
    ids = tokens()
    found, entropy, _ = run._get_per_token_logps_and_entropies(
        model, ids, torch.ones_like(ids), logits_to_keep=3, compute_entropy=True
    )
    logs = (model(input_ids=ids).logits[:, :-1].float() / 0.9).log_softmax(-1)
    expected = logs.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found, expected[:, -3:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entropy, -(logs.exp() * logs).sum(-1)[:, -3:], rtol=1e-4, atol=1e-4)
    before = model.get_output_embeddings().state_dict()
    before = {name: value.clone() for name, value in before.items()}
    run.train()
    after = model.get_output_embeddings().state_dict()
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_a_head_in_float32_is_refused_with_the_reason(coded, tokenizer, tmp_path):
    with pytest.raises(ConfigurationError, match="omit it: token scores"):
        grpo(coded(loss="codeword"), tmp_path, tokenizer, cast_lm_head_to_fp32=True)


def test_distillation_which_reads_the_weights_of_the_head_is_refused(coded, tokenizer, tmp_path):
    arguments = trl.DistillationConfig(output_dir=str(tmp_path), **COMMON, max_steps=1)
    with pytest.raises(ConfigurationError, match="distillation does not ask"):
        trl.DistillationTrainer(
            model=coded(),
            teacher_model=coded(),
            args=arguments,
            train_dataset=preferences().select_columns(["prompt"]),
            processing_class=tokenizer,
        )
