"""Hidden states of a text, and a decision layer that learns from the Softmax head it replaces."""

from __future__ import annotations

import pytest
import torch
from architectures import CONFIGS, HIDDEN, VOCAB, make, tokens
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import codehead
from codehead.errors import CodeheadError, ConfigurationError, DataError
from codehead.models.hidden import Statistics, hidden_states
from codehead.training.config import Distillation
from codehead.training.distil import LARGE, RELATIVE_RATE, distil, row_sizes

CORRECTED = {"loss": "codeword", "dense_rows": [3, 50, 7], "token_bias": True}
QUICK = {"steps": 100, "batch_tokens": 64, "learning_rate": 1e-2, "code_learning_rate": 6e-2}


def batch(labels=None):
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100) if labels is None else labels,
    }


# Hidden states


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_are_what_the_head_is_given(name):
    model = make(name, tied=False).train()
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(input_ids=batch()["input_ids"], attention_mask=batch()["attention_mask"])
    hook.remove()
    head = model.train().get_output_embeddings()
    found = hidden_states(model, [batch()], limit=100)
    torch.testing.assert_close(found, seen[0][:, :-1][batch()["labels"][:, 1:] != -100])
    assert model.training and model.get_output_embeddings() is head


def test_no_more_positions_than_asked_for_and_no_more_text_than_needed():
    def batches():
        yield batch()
        yield batch()
        raise AssertionError("read on")

    assert len(hidden_states(make("llama"), batches(), limit=15)) == 15


def test_text_without_labels_is_refused_and_the_model_stays_whole():
    model = make("llama")
    head = model.get_output_embeddings()
    with pytest.raises(DataError, match="holds no token to predict"):
        hidden_states(model, [batch(labels=torch.full((2, 7), -100))], limit=5)
    assert model.get_output_embeddings() is head


def test_distances_of_seen_rows_are_those_of_scores():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5000, HIDDEN, generator=generator) @ torch.randn(HIDDEN, HIDDEN, generator=generator) + 3
    rows = torch.randn(VOCAB, HIDDEN, generator=generator)
    statistics = Statistics.of(torch.ones(VOCAB), hidden)
    scores = ((hidden - hidden.mean(0)) @ rows.T).double()
    seen = statistics.seen(rows).double()
    torch.testing.assert_close(seen.square().sum(-1), scores.square().mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(statistics.mean, hidden.double().mean(0))
    assert torch.equal(Statistics(torch.ones(VOCAB)).seen(rows), rows)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"counts": torch.tensor([1.0, -1])}, "counts of shape"),
        ({"counts": torch.ones(2, 2)}, "counts of shape"),
        ({"counts": torch.tensor([1.0, float("nan")])}, "counts holds values that are not finite"),
        ({"counts": torch.ones(2), "mean": torch.zeros(3)}, "go together"),
        ({"counts": torch.ones(2), "mean": torch.zeros(3), "covariance": torch.eye(2)}, "does not fit a mean"),
        (
            {"counts": torch.ones(2), "mean": torch.zeros(1), "covariance": torch.full((1, 1), float("inf"))},
            "not finite",
        ),
    ],
)
def test_impossible_statistics_are_refused(values, message):
    with pytest.raises(ConfigurationError, match=message):
        Statistics(**values)


# Distillation


def peaked():
    """A Softmax head whose distributions are far from uniform, and hidden states."""
    generator = torch.Generator().manual_seed(3)
    model = make("llama", tied=False)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=1.0, generator=generator)
    return model, torch.randn(400, HIDDEN, generator=generator)


def distilled(options=None, dtype=torch.float32, attach=None, **changes):
    model, hidden = peaked()
    old = model.get_output_embeddings()
    model.to(dtype)
    codehead.attach(model, **(attach or {"code": "itq", "bits": 24, "start": "old_head", **CORRECTED}))
    teacher = old.float()
    before = divergence(model, teacher, hidden)
    distil(model, teacher, hidden, Distillation(**{**QUICK, **changes}), **(options or {}))
    return model, before, divergence(model, teacher, hidden)


@torch.no_grad()
def divergence(model, teacher, hidden):
    head = model.get_output_embeddings()
    scores = model.decision.logits(head(hidden.to(head.weight.dtype))).float().log_softmax(-1)
    return F.kl_div(scores, teacher(hidden).log_softmax(-1), reduction="batchmean", log_target=True).item()


def test_head_code_and_corrections_learn():
    model, before, after = distilled()
    assert after < 0.75 * before
    kept, _, fixed = distilled(code_learning_rate=0.0)
    assert after < fixed - 0.02 < before
    start = codehead.attach(peaked()[0], "itq", bits=24, start="old_head", **CORRECTED)
    assert torch.equal(kept.decision.table.sign_plane, start.decision.table.sign_plane)
    assert not torch.equal(model.decision.table.sign_plane, start.decision.table.sign_plane)


def test_labels_have_the_share_that_they_are_given():
    labels = torch.randint(VOCAB, (400,), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def nats(model):
        scores = model.decision.logits(model.get_output_embeddings()(peaked()[1]))
        return F.cross_entropy(scores, labels).item()

    alone, both, none = (distilled({"labels": labels}, label_weight=share) for share in (1.0, 0.5, 0.0))
    assert nats(alone[0]) < nats(both[0]) < nats(none[0])
    assert none[2] < both[2] < alone[2]
    assert none[2] == distilled()[2]
    with pytest.raises(ConfigurationError, match=r"label_weight is 0.5, but there are no labels"):
        distilled(label_weight=0.5)
    with pytest.raises(ConfigurationError, match=r"distil.label_weight is 1.5; give a share"):
        Distillation(label_weight=1.5)


def test_the_reported_divergence_is_that_of_the_last_step_and_rows_stay_distinct():
    seen = []
    model, _, after = distilled({"progress": lambda *values: seen.append(values)}, batch_tokens=400)
    assert [values[:2] for values in seen] == [(step, 100) for step in range(1, 101)]
    assert seen[-1][2] == pytest.approx(after, rel=0.3)
    assert len(model.decision.table.sign_plane.unique(dim=0)) == VOCAB


def test_a_learnt_code_is_saved_with_its_name(tmp_path):
    model, _, _ = distilled()
    assert model.config.quantization_config["decision"]["code"] == "learned"
    assert model.config.quantization_config["decision"]["code_params"]["start"] == "itq"
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.eval()(tokens()).logits, model.eval()(tokens()).logits)
    assert loaded.config.quantization_config == model.config.quantization_config


def test_pieces_of_a_step_change_nothing(monkeypatch):
    whole, _, _ = distilled(steps=5)
    monkeypatch.setattr("codehead.training.likely_tokens.CHUNK_SCORES", 10 * VOCAB)
    pieces, _, _ = distilled(steps=5)
    torch.testing.assert_close(pieces.lm_head.rows.weight, whole.lm_head.rows.weight, rtol=1e-3, atol=1e-4)


LAYERS = {
    "random code": {"code": "minrandom", "bits": 24},
    "mtl": {"code": "itq", "bits": 24, "head": "mtl", "width": 4},
    "mtl in groups": {"code": "itq", "bits": 24, "head": "mtl", "width": 24, "head_params": {"groups": 3}},
    "low rank": {"code": "one_vs_all", "head": "low_rank", "head_params": {"rank": 4}, "loss": "codeword"},
    "adaptive": {"code": "one_vs_all", "head": "adaptive", "head_params": {"cutoffs": [40]}, "loss": "codeword"},
}


@pytest.mark.parametrize("layer", LAYERS)
def test_any_head_of_independent_bits_learns(layer):
    _, before, after = distilled(attach=LAYERS[layer], steps=100, learning_rate=1e-2)
    assert after < 0.8 * before


def test_half_precision_models_learn_in_float32():
    model, before, after = distilled(dtype=torch.bfloat16)
    assert after < 0.75 * before
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_same_seed_learns_the_same():
    assert torch.equal(distilled(steps=10)[0].lm_head.bits.weight, distilled(steps=10)[0].lm_head.bits.weight)


def test_a_ternary_code_is_refused():
    with pytest.raises(ConfigurationError, match="learns a binary code of independent bits"):
        distilled(attach={"code": "sparse_random", "bits": 44})


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0}, {"tokens": -1}, {"learning_rate": float("nan")}, {"seed": -1}, {"backbone_steps": -1},
        {"label_weight": 1.5}, {"label_weight": True},
    ],
)  # fmt: skip
def test_impossible_options_are_named(change):
    with pytest.raises(ConfigurationError, match=f"distil.{next(iter(change))} is"):
        Distillation(**change)


def test_rows_learn_at_rates_in_proportion_to_their_size():
    model = codehead.attach(make("llama", tied=False), "additive", bits=16, start="old_head", **CORRECTED)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.rows.weight[0] *= 100
    before = {name: values.detach().clone() for name, values in model.named_parameters()}
    teacher, options = make("llama", tied=False).get_output_embeddings(), Distillation(steps=1, batch_tokens=16)
    distil(model, teacher, torch.randn(50, HIDDEN), options)
    for name, values in model.named_parameters():
        if values.dim() == 2 and not torch.equal(values, before[name]):
            moved = (values.detach() - before[name]).abs().amax(1)  # Adam's first step has the size of the rate
            sizes = before[name].square().mean(1).sqrt().clamp(max=LARGE)
            torch.testing.assert_close(moved, RELATIVE_RATE * sizes, rtol=1e-3, atol=1e-6)
    assert not torch.equal(head.rows.weight, before["lm_head.rows.weight"])


def test_the_sizes_of_rows_that_learn():
    sizes = row_sizes(torch.tensor([[3.0, -3.0], [0.0, 0.0], [0.03, -0.04]]))
    torch.testing.assert_close(sizes, torch.tensor([[LARGE], [LARGE], [0.05 / 2**0.5]]))
    assert torch.equal(row_sizes(torch.tensor([5.0, 0.0])), torch.full((1,), LARGE))


@pytest.mark.parametrize(
    ("nats", "rate", "weight"), [(None, 1e30, 0.0), (None, 1e30, 0.5), (None, 0.3, 0.0), (float("nan"), 1e30, 0.5)]
)
def test_a_head_that_does_not_learn_is_not_kept(nats, rate, weight, monkeypatch):
    expected = pytest.warns(UserWarning, match="the new head was reset to its start")
    if nats is not None:
        expected = pytest.raises(CodeheadError, match="diverged")
        monkeypatch.setattr("codehead.training.distil.imitate", lambda *args: nats)
    model = codehead.attach(make("llama", tied=False), "itq", bits=16, start="old_head", **CORRECTED)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    wanted = make("llama", tied=False).get_output_embeddings()
    options = Distillation(steps=3, batch_tokens=16, learning_rate=rate, label_weight=weight)
    with expected:
        distil(model, wanted, torch.randn(50, HIDDEN), options, labels=torch.arange(50))
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_batches_without_padding_need_no_mask():
    given = {name: batch()[name][:1] for name in ("input_ids", "labels")}
    masked = {**given, "attention_mask": torch.ones_like(given["input_ids"])}
    model = make("llama", tied=False)
    assert torch.equal(hidden_states(model, [given], limit=9), hidden_states(model, [masked], limit=9))


def test_codewords_that_stay_packed_do_so_when_they_are_learnt():
    model = codehead.attach(make("llama", tied=False), "itq", bits=16, start="old_head", **CORRECTED)
    model.decision.packed = True
    distil(model, make("llama", tied=False).get_output_embeddings(), torch.randn(50, HIDDEN), Distillation(steps=1))
    assert model.decision.packed
