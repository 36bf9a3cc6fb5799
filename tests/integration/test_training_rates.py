from __future__ import annotations

import json

import pytest
from small_runs import finetuning
from transformers import TrainerCallback

from codehead.errors import ConfigurationError
from codehead.models.surgery import attach
from codehead.training.distil import STEADY, row_sizes
from codehead.training.model import load_model
from codehead.training.run import train
from codehead.training.tokenizer import load_tokenizer

SCALE = "decision.corrections.parametrizations.token_bias.original1"


class KeepsRates(TrainerCallback):
    """Keeps the learning rate that every parameter begins with."""

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        rates = {id(values): group["initial_lr"] for group in optimizer.param_groups for values in group["params"]}
        trained = {name: values for name, values in model.named_parameters() if values.requires_grad}
        assert rates.keys() == {id(values) for values in trained.values()}
        self.rates = {name: rates[id(values)] for name, values in trained.items()}
        self.sizes = {name: float(row_sizes(values.detach()).median()) for name, values in trained.items()}


@pytest.mark.parametrize("adapt", ["full", "lora", "head"])
@pytest.mark.parametrize("start", ["old_head", "random"])
def test_a_code_that_began_at_the_old_head_moves_slowly(pretrained, stories, tmp_path, adapt, start):
    decision = {"code": "additive", "bits": 12, "loss": "codeword", "token_bias": True, "start": start}
    kept = KeepsRates()
    train(
        finetuning(pretrained["softmax"], stories, tmp_path, decision=decision, adapt=adapt),
        callbacks=[kept],
        progress=False,
    )
    usual = max(kept.rates.values()) if adapt != "head" else 1.0
    for name, rate in kept.rates.items():
        layer = "lm_head" in name or "decision" in name
        slowed = layer and start == "old_head"
        assert rate == pytest.approx(min(usual, STEADY * kept.sizes[name])) if slowed else rate <= usual
    if start == "random":
        assert len(set(kept.rates.values())) == 1


def test_a_new_head_whose_code_is_not_named_learns_at_the_rate_of_the_run(pretrained, stories, tmp_path):
    kept, decision = KeepsRates(), {"loss": "codeword"}
    config = finetuning(pretrained["softmax"], stories, tmp_path, decision=decision, adapt="full")
    train(config, callbacks=[kept], progress=False)
    assert set(kept.rates.values()) == {0.01}


def test_the_decision_layer_may_have_a_rate_of_its_own(pretrained, stories, tmp_path):
    kept, decision = KeepsRates(), {"code": "minrandom", "bits": 12}
    config = finetuning(
        pretrained["softmax"], stories, tmp_path, decision=decision, adapt="full", head_learning_rate=0.5
    )
    train(config, callbacks=[kept], progress=False)
    assert {rate == 0.5 for name, rate in kept.rates.items() if name.startswith("lm_head")} == {True}
    assert [name for name, rate in kept.rates.items() if rate == 0.5] == ["lm_head.weight"]
    assert json.loads((tmp_path / "run.json").read_text())["config"]["head_learning_rate"] == 0.5
    with pytest.raises(ConfigurationError, match="head_learning_rate is -1"):
        finetuning(pretrained["softmax"], stories, tmp_path, head_learning_rate=-1)
    tied = finetuning(pretrained["softmax"], stories, tmp_path / "tied", adapt="full", head_learning_rate=0.5)
    with pytest.raises(ConfigurationError, match=r"head_learning_rate is 0\.5, but the head is the input embedding"):
        train(tied, progress=False)


def test_a_code_that_was_trained_before_moves_slowly_too(pretrained, stories, tmp_path):
    decision = {"code": "additive", "bits": 12, "loss": "codeword", "token_bias": True}
    first = finetuning(pretrained["softmax"], stories, tmp_path / "first", decision=decision, adapt="full")
    again, bitwise = KeepsRates(), KeepsRates()
    train(finetuning(train(first, progress=False), stories, tmp_path / "again"), callbacks=[again], progress=False)
    rates = {name: rate for name, rate in again.rates.items() if "lora_" not in name}
    assert len(rates) == 2
    assert rates == {name: pytest.approx(min(0.01, STEADY * again.sizes[name])) for name in rates}
    assert json.loads((tmp_path / "again/run.json").read_text())["head_rates"] == rates
    train(finetuning(pretrained["coded"], stories, tmp_path / "bits"), callbacks=[bitwise], progress=False)
    assert set(bitwise.rates.values()) == {0.01}


@pytest.mark.parametrize("is_trained", [False, True])
def test_a_stored_head_with_its_random_weights_learns_at_the_rate_of_the_run(pretrained, stories, tmp_path, is_trained):
    model = load_model(str(pretrained["softmax"]))
    attach(model, "additive", bits=12, loss="codeword", token_bias=True).save_pretrained(tmp_path / "new")
    if is_trained:  # by whatever means
        model = load_model(str(tmp_path / "new"))
        model.lm_head.weight.data[3] += 1e-3
        model.save_pretrained(tmp_path / "new")
    load_tokenizer(str(pretrained["softmax"])).save_pretrained(tmp_path / "new")
    kept = KeepsRates()
    train(finetuning(tmp_path / "new", stories, tmp_path / "run", adapt="full"), callbacks=[kept], progress=False)
    assert (kept.rates["lm_head.weight"] < 0.01) is is_trained


def test_the_scale_of_rounded_biases_moves_slowly_for_its_size(pretrained, stories, tmp_path):
    decision = {"code": "additive", "bits": 12, "loss": "codeword", "token_bias": True, "start": "old_head"}
    first = finetuning(pretrained["softmax"], stories, tmp_path / "first", decision=decision, int8=True)
    again = KeepsRates()
    train(
        finetuning(train(first, progress=False), stories, tmp_path / "again", adapt="head"),
        callbacks=[again],
        progress=False,
    )
    scale = dict(load_model(str(tmp_path / "first")).named_parameters())[SCALE]
    assert scale.shape == (1,)
    assert again.rates[SCALE] == pytest.approx(STEADY * abs(scale.item()))
