"""Models whose head is a chain of bits: every architecture, checkpoints, training, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from architectures import CONFIGS, VOCAB, make, tokens
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, TrainerCallback

import codehead
from codehead.errors import CheckpointError, ConfigurationError
from codehead.evaluation.metrics import evaluate
from codehead.training.config import RunConfig
from codehead.training.model import load_model
from codehead.training.run import train

CHAIN = {"code": "minimal", "bits": None, "head": "chain", "width": 4, "head_params": {"block": 3}}
PARAMETERS = {"decision.chain.weight", "decision.chain.bias", "decision.chain.context"}


@pytest.fixture
def chained(coded):
    def build(name="llama", tied=True, **options):
        model = coded(name, tied, **{**CHAIN, **options})
        torch.nn.init.normal_(model.decision.chain.context, generator=torch.Generator().manual_seed(1))
        return model

    return build


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_log_probabilities_and_the_loss_is_theirs(name, tied, chained):
    model, ids = chained(name, tied, loss="codeword"), tokens()
    with torch.no_grad():
        out = model(input_ids=ids, labels=ids)
    assert out.logits.shape == (2, 7, VOCAB) and out.logits.exp().std() > 1e-4
    torch.testing.assert_close(out.logits.logsumexp(-1), torch.zeros(2, 7), atol=1e-5, rtol=0)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(model.decision.loss(model.head_outputs(input_ids=ids)[:, :-1], ids[:, 1:]), expected)
    assert isinstance(model, type(make(name)))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_comes_back_bit_for_bit(name, chained, tmp_path):
    model = chained(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens()).logits, model(input_ids=tokens()).logits)
    assert loaded.config.quantization_config == model.config.quantization_config
    detached = codehead.detach(model)
    assert not codehead.is_coded(detached)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_survives(dtype, chained, tmp_path):
    model = chained("opt_350m").to(dtype)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.decision.parameters()} == {dtype}
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens()).logits, model(input_ids=tokens()).logits)


def test_a_seed_is_one_head_and_leaves_the_global_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    stock = make("gpt2")
    state = torch.get_rng_state()
    one = codehead.attach(stock, **CHAIN)
    assert torch.equal(torch.get_rng_state(), state) and not torch.equal(before, state)
    other, third = codehead.attach(make("gpt2"), **CHAIN), codehead.attach(make("gpt2"), **CHAIN, seed=1)
    assert torch.equal(one.decision.chain.context, other.decision.chain.context)
    assert not torch.equal(one.decision.chain.context, third.decision.chain.context)


def test_greedy_generation_takes_the_token_that_decoding_finds(chained):
    model, ids = chained("gpt2"), tokens()
    with torch.no_grad():
        found = model.generate(ids, max_new_tokens=1, do_sample=False, eos_token_id=None)[:, -1]
        best = model.decision.decode(model.head_outputs(input_ids=ids)[:, -1]).ids.squeeze(-1)
    assert torch.equal(found, best)


def test_metrics_tell_bits_given_the_true_bits_before_them(chained):
    model = chained("gpt2", loss="bitwise").eval()
    rows = [{"input_ids": row, "labels": row} for row in tokens(batch=3).tolist()]
    result = evaluate(model, None, rows, batch_size=2)
    with torch.no_grad():
        labels = tokens(batch=3)[:, 1:]
        outputs = model.head_outputs(input_ids=tokens(batch=3))[:, :-1]
        nats = F.cross_entropy(model.decision.logits(outputs).flatten(0, 1), labels.flatten(), reduction="sum")
        bits, symbols = model.decision.nodes(outputs, labels)
    assert result.perplexity == pytest.approx((nats / labels.numel()).exp().item(), rel=1e-4)
    assert result.node_loss == pytest.approx((nats / symbols.abs().sum()).item(), rel=1e-4)
    assert result.bit_accuracy == pytest.approx(((bits * symbols > 0).sum() / symbols.abs().sum()).item())
    with pytest.raises(ConfigurationError, match="choose decoder='likelihood'"):
        evaluate(model, None, rows, decoder="hamming")


def test_what_a_chain_cannot_do_is_refused(chained):
    model = chained()
    with pytest.raises(ConfigurationError, match=r"decision\.nodes"):
        model.bit_logits(input_ids=tokens())
    with pytest.raises(ConfigurationError, match="cannot fold a head 'chain'"):
        codehead.fold(model)
    for options, message in (
        ({"start": "old_head"}, "or start='random'"),
        ({"dense_rows": [1], "loss": "codeword"}, "omit dense_rows and token_bias"),
        ({"code": "one_vs_all"}, "choose a binary code"),
        ({"code": "minrandom", "bits": 24}, "A chain needs no redundancy"),
        ({"decoder": "euclidean"}, "choose decoder='likelihood'"),
    ):
        stock = make("gpt2")
        with pytest.raises(ConfigurationError, match=message):
            codehead.attach(stock, **{**CHAIN, **options})
        assert not codehead.is_coded(stock)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_a_missing_part_is_named(name, chained, tmp_path):
    chained().save_pretrained(tmp_path)
    (tmp_path / "codehead.json").unlink()
    state = load_file(tmp_path / "model.safetensors")
    del state[name]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{name}.*missing"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


# --- training


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.jsonl"
    rows = [{"text": " ".join(str(i * j % 23) for j in range(1, 30))} for i in range(1, 21)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def run(text, folder, **changes):
    values = {
        "model": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
        "tokenizer": {"train": "bpe", "vocab_size": 270},
        "data": {"train": text, "block_size": 32},
        "decision": CHAIN,
        "training": {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 0.01},
        "output_dir": str(folder),
    }
    return RunConfig.from_dict({**values, **changes})


@pytest.fixture(scope="module")
def pretrained(text, tmp_path_factory):
    return train(run(text, tmp_path_factory.mktemp("runs") / "chain"), progress=False)


def weights(folder):
    return dict(load_model(str(folder)).named_parameters())


@pytest.mark.parametrize("adapt", ["lora", "head", "full"])
def test_every_adaptation_trains_the_chain(pretrained, text, tmp_path, adapt):
    before = weights(pretrained)
    config = run(text, tmp_path / "run", model=str(pretrained), tokenizer=None, decision=None, adapt=adapt)
    after = weights(train(config, progress=False))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved >= {*PARAMETERS, "lm_head.weight"}
    assert adapt != "head" or moved == {*PARAMETERS, "lm_head.weight"}


class StopAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("adapt", ["full", "lora"])
def test_an_interrupted_run_goes_on_to_the_same_weights(pretrained, text, tmp_path, adapt):
    config = run(text, tmp_path / "whole", model=str(pretrained), tokenizer=None, decision=None, adapt=adapt)
    whole = weights(train(config, progress=False))
    stopped = replace(config, output_dir=str(tmp_path / "stopped"))
    with pytest.raises(KeyboardInterrupt):
        train(stopped, progress=False, callbacks=[StopAt()])
    resumed = weights(train(stopped, progress=False))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
