"""A backbone that learns to serve its new decision layer: nearer to the old model, and still a plain one."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import CONFIGS, make, tokens
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import codehead
from codehead.boundaries import peft_warnings_hidden
from codehead.errors import CodeheadError
from codehead.models.probe import LogitScaling, softmax_head
from codehead.training.config import Distillation, LoraConfig
from codehead.training.distil import GRADIENT_SCALE, STEADY, _gradients, learn_together, row_sizes
from codehead.training.likely_tokens import imitate
from codehead.training.model import with_lora

IDS = tokens(8, 12)
MASK = torch.ones_like(IDS)
MASK[::2, 7:] = 0
BATCH = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS.masked_fill(MASK == 0, -100)}


def stock(name, dtype=torch.float32):
    model = make(name, tied=False)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5 / LogitScaling.of(model).scale)
    return model.to(dtype)


def learnt(old, steps=30, batch=BATCH, label_weight=0.0, rate=1e-2, backbone_rate=1e-2, **layer):
    """A coded copy of a stock model, before and after it was trained as a whole, and what the progress told."""
    made = {"code": "itq", "bits": 16, "loss": "codeword", "start": "old_head", **layer}
    before = codehead.attach(copy.deepcopy(old), **made, statistics=statistics(old))
    after, told = copy.deepcopy(before), []
    options = Distillation(
        backbone_steps=steps, backbone_learning_rate=backbone_rate, label_weight=label_weight, learning_rate=rate
    )
    learn_together(
        after,
        softmax_head(old),
        lambda generator: {name: values[torch.randperm(8, generator=generator)[:4]] for name, values in batch.items()},
        options,
        LoraConfig(),
        lambda *done: told.append(done),
    )
    return before.eval(), after.eval(), told


def statistics(model):
    from codehead.models.hidden import Statistics, hidden_states

    return Statistics.of(torch.ones(model.config.vocab_size), hidden_states(model, [BATCH], 100).float())


def divergence(model, old):
    known = MASK.bool()
    with torch.no_grad():
        found, wanted = (
            each(input_ids=IDS, attention_mask=MASK).logits[known].float().log_softmax(-1) for each in (model, old)
        )
    return float(F.kl_div(found, wanted, reduction="batchmean", log_target=True))


def test_without_a_rate_a_head_moves_in_proportion_to_its_rows():
    before, after, _ = learnt(stock("llama"), steps=1, rate=None)
    old, new = (model.get_output_embeddings().weight.detach() for model in (before, after))
    rate = STEADY * row_sizes(old).median()
    assert rate < 1e-2
    torch.testing.assert_close((new - old).abs().max(), rate, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_comes_nearer_to_the_old_one(name, tmp_path):
    old = stock(name)
    before, after, told = learnt(old)
    enough = 1.0 if name == "mixtral" else 0.8  # a router that jumps between experts undoes much of it
    assert divergence(after, old) < enough * divergence(before, old)
    assert told == [(done, 30) for done in range(1, 31)]
    assert [key for key, _ in after.named_parameters()] == [key for key, _ in before.named_parameters()]
    asked = [(key, values.requires_grad) for key, values in before.named_parameters()]
    assert asked == [(key, values.requires_grad) for key, values in after.named_parameters()]
    torch.testing.assert_close(after.get_input_embeddings().weight, before.get_input_embeddings().weight)
    assert torch.equal(after.decision.table.sign_plane, before.decision.table.sign_plane)
    after.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(IDS).logits, after(IDS).logits, rtol=0, atol=0)


def test_corrections_and_the_backbone_learn_too():
    before, after, _ = learnt(
        stock("llama"), dense_rows=[3, 50, 7], token_bias=True, extra_bit_tokens=[5, 6], extra_bits=8
    )
    assert not torch.equal(after.decision.corrections.token_bias, before.decision.corrections.token_bias)
    changed = {
        name.rsplit(".", 2)[-2]
        for (name, new), old in zip(after.model.named_parameters(), before.model.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_the_head_learns_no_faster_with_the_backbone_than_before_it():
    before, after, _ = learnt(stock("llama"), steps=3, rate=0.0)
    assert torch.equal(after.get_output_embeddings().weight, before.get_output_embeddings().weight)
    pairs = zip(after.model.parameters(), before.model.parameters(), strict=True)
    assert any(not torch.equal(new, old) for new, old in pairs)


HEADS = {
    "adaptive": {"code": "one_vs_all", "head": "adaptive", "head_params": {"cutoffs": [20]}},
    "low rank": {"code": "one_vs_all", "head": "low_rank", "head_params": {"rank": 4}},
}


@pytest.mark.parametrize("layer", HEADS.values(), ids=HEADS)
def test_other_heads_learn_with_their_backbone(layer):
    old = stock("llama")
    before, after, _ = learnt(old, bits=None, **layer)
    assert divergence(after, old) < 0.9 * divergence(before, old)


def test_a_head_that_is_the_old_one_has_nothing_to_learn(monkeypatch):
    nats = []

    def kept(*args):
        nats.append(imitate(*args))
        return nats[-1]

    monkeypatch.setattr("codehead.training.distil.imitate", kept)
    learnt(stock("granite"), steps=1, code="one_vs_all", bits=None)
    assert nats[0] == pytest.approx(0, abs=1e-5)


def test_targets_that_match_nothing_are_told_before_anything_is_learnt(monkeypatch):
    from codehead.errors import ConfigurationError
    from codehead.training.config import RunConfig
    from codehead.training.data import Text
    from codehead.training.new_head import fit_decision_layer

    monkeypatch.setattr("codehead.training.new_head.labelled_states", None)  # a call would fail
    config = RunConfig.from_dict(
        {
            "model": "m", "output_dir": "o", "data": {"train": "t"}, "decision": {"code": "itq", "loss": "codeword"},
            "distil": {"backbone_steps": 1}, "lora": {"target_modules": ["nothing"]},
        }
    )  # fmt: skip
    examples = [{"input_ids": [1, 2], "labels": [1, 2]}]
    monkeypatch.setattr(Text, "counts", lambda text, size: torch.ones(size).numpy())
    with pytest.raises(ConfigurationError, match="matches no module of LlamaForCausalLM"):
        fit_decision_layer(make("llama", tied=False), config, Text(lambda: examples, 0))


def test_labels_pull_where_they_are_given_weight():
    def label_nats(model):
        with torch.no_grad():
            logits = model(input_ids=IDS, attention_mask=MASK).logits[:, :-1].float()
        return float(F.cross_entropy(logits.transpose(1, 2), BATCH["labels"][:, 1:]))

    plain, pulled = (learnt(stock("llama"), label_weight=weight)[1] for weight in (0.0, 1.0))
    assert label_nats(pulled) < label_nats(plain) - 1


def test_low_precision_models_keep_their_dtype_and_come_nearer():
    old = stock("llama", torch.bfloat16)
    before, after, _ = learnt(old)
    assert {values.dtype for values in after.parameters()} == {torch.bfloat16}
    assert divergence(after, old) < 0.8 * divergence(before, old)


def test_small_gradients_are_not_lost_in_float16(monkeypatch):
    """Those of a head that is nearly its teacher."""

    def lost(scale):
        monkeypatch.setattr("codehead.training.distil.GRADIENT_SCALE", scale)
        old = stock("llama", torch.float16)
        model = codehead.attach(copy.deepcopy(old), "one_vs_all", loss="codeword", start="old_head")
        head = old.get_output_embeddings()
        with peft_warnings_hidden():
            adapted = with_lora(model, LoraConfig())
        _gradients(adapted, model, lambda hidden: (1 + 1e-6) * head(hidden).float(), BATCH, 0.0)
        found = [values.grad for name, values in adapted.named_parameters() if "lora_B" in name]
        return float(torch.cat([values.flatten() for values in found]).eq(0).float().mean())

    assert lost(GRADIENT_SCALE) < 0.5 * lost(1.0)


def test_a_backbone_that_the_last_step_ruined_is_told():
    with pytest.raises(CodeheadError, match=r"distil\.backbone_learning_rate"):
        learnt(stock("llama"), steps=1, backbone_rate=1e30)


def test_gradients_are_those_of_the_loss():
    """Whatever they are scaled by on their way."""
    model = codehead.attach(stock("llama"), "itq", bits=16, loss="codeword", start="old_head", token_bias=True)
    teacher = copy.deepcopy(model.get_output_embeddings())
    with peft_warnings_hidden():
        adapted = with_lora(model, LoraConfig())
    codewords = model.decision.table.signs()

    def wanted(hidden):
        return teacher(hidden) @ codewords.T

    nats = _gradients(adapted, model, wanted, BATCH, 0.0)
    found = {name: values.grad.clone() for name, values in model.named_parameters() if values.grad is not None}
    model.zero_grad()
    labelled = BATCH["labels"][:, 1:] != -100
    with torch.no_grad(), adapted.disable_adapter():
        hidden = model.model(IDS, attention_mask=MASK).last_hidden_state[:, :-1][labelled]
    outputs = model.head_outputs(input_ids=IDS, attention_mask=MASK)[:, :-1][labelled]
    student, likely = model.decision.logits(outputs).log_softmax(-1), wanted(hidden).log_softmax(-1).detach()
    loss = F.kl_div(student, likely, reduction="batchmean", log_target=True)
    loss.backward()
    assert nats == pytest.approx(loss.item(), rel=1e-4)
    assert found.keys() == {name for name, values in model.named_parameters() if values.grad is not None}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-3, atol=1e-6)


def test_divergence_is_told(monkeypatch):
    monkeypatch.setattr("codehead.training.distil._gradients", lambda *args: float("nan"))
    with pytest.raises(CodeheadError, match=r"diverged.*backbone_learning_rate"):
        learnt(stock("llama"), steps=1)


def test_the_same_seed_learns_the_same_and_leaves_the_global_numbers_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    old = stock("llama")
    torch.set_rng_state(state)
    one = learnt(old, steps=3)[1]
    torch.manual_seed(6)
    other = learnt(old, steps=3)[1]
    for name, values in one.named_parameters():
        assert torch.equal(values, other.get_parameter(name)), name


def test_a_batch_without_labels_is_passed_over():
    nothing = {**BATCH, "labels": torch.full_like(IDS, -100)}
    before, after, told = learnt(stock("llama"), steps=2, batch=nothing)
    assert len(told) == 2
    with torch.no_grad():
        torch.testing.assert_close(after(IDS).logits, before(IDS).logits)
