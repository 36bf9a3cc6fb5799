"""Text that a model writes itself, alone and as a part of what a new head learns from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from architectures import VOCAB, make
from datasets import Dataset
from transformers import WatermarkingConfig

from codehead.errors import ConfigurationError
from codehead.losses import IGNORE
from codehead.models.own_text import beginnings, write
from codehead.training import new_head
from codehead.training.config import Distillation, RunConfig
from codehead.training.data import Text
from codehead.training.loop import Stages, Work

LENGTH = 12


def test_texts_begin_as_told_and_are_as_long_as_asked():
    first = beginnings([5, 6], 40, VOCAB, seed=1)
    assert first.shape == (40, 3) and (first[:, :2] == torch.tensor([5, 6])).all()
    assert len(first[:, 2].unique()) > 20
    text = write(make("llama"), first, LENGTH, seed=1)
    assert text.shape == (40, LENGTH) and text.dtype == torch.long and torch.equal(text[:, :3], first)


def test_a_seed_repeats_the_text_and_leaves_other_random_numbers_alone():
    model, first = make("llama"), beginnings([], 3, VOCAB, seed=0)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, other = write(model, first, LENGTH, seed=2), write(model, first, LENGTH, seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one, write(model, first, LENGTH, seed=2)) and not torch.equal(one, other)


SETTINGS = {
    "temperature": 0.01, "top_k": 1, "top_p": 0.1, "repetition_penalty": 5.0, "min_p": 0.9, "typical_p": 0.1,
    "epsilon_cutoff": 0.05, "eta_cutoff": 0.05, "no_repeat_ngram_size": 1, "bad_words_ids": [[5], [6]],
    "suppress_tokens": list(range(60)), "begin_suppress_tokens": list(range(60)), "sequence_bias": {(9,): 30.0},
    "forced_bos_token_id": 9, "forced_eos_token_id": 2, "watermarking_config": WatermarkingConfig(bias=30.0),
    "num_beams": 3, "num_return_sequences": 2, "prompt_lookup_num_tokens": 2,
    "return_dict_in_generate": True, "stop_strings": ["a"], "max_time": 1e-9, "token_healing": True,
    "exponential_decay_length_penalty": (1, 9.0),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_text_comes_from_the_whole_distribution_whatever_the_model_generates_with(name):
    model, first = make("llama"), beginnings([], 8, VOCAB, seed=0)
    model.generation_config.eos_token_id = None
    expected = write(model, first, LENGTH, seed=0)
    settings = model.generation_config
    setattr(settings, name, SETTINGS[name])
    assert torch.equal(write(model, first, LENGTH, seed=0), expected)
    assert model.generation_config is settings and getattr(settings, name) == SETTINGS[name]


def test_a_model_in_training_writes_without_dropout_and_stays_in_its_modes():
    model, first = make("llama"), beginnings([], 8, VOCAB, seed=0)
    expected = write(model, first, LENGTH, seed=0)
    for layer in model.train().model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.model.norm.eval()
    assert torch.equal(write(model, first, LENGTH, seed=0), expected)
    assert [name for name, module in model.named_modules() if not module.training] == ["model.norm"]


def test_no_text_ends_early():
    model = make("llama")
    model.generation_config.eos_token_id = list(range(VOCAB - 10))
    text = write(model, beginnings([], 4, VOCAB, seed=0), LENGTH, seed=0)
    assert text.shape == (4, LENGTH) and (text[:, 1:] >= VOCAB - 10).all()


@pytest.mark.parametrize(("bos", "eos", "start"), [(1, 2, (1,)), (2, 2, ()), (None, 2, ()), (9, 2, ())])
def test_texts_start_as_those_of_the_tokenizer(bos, eos, start):
    """With its bos token, if it writes that itself; one that is also eos only separates texts."""

    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = bos, eos, 0

        def __call__(self, text):
            return SimpleNamespace(input_ids=[bos, 5] if bos in (1, 2) else [5])

    assert Text.of(Dataset.from_list([]), Tokenizer(), LENGTH, "the text", 0).start == start


def own(share: float, examples: int, tokens: int, start: tuple[int, ...] = (), **work) -> list[dict]:
    """The batches that a model writes beside a text of so many examples."""
    rows = Dataset.from_list([{"input_ids": [1] * LENGTH, "labels": [1] * LENGTH}] * examples)
    text = Text(lambda: rows, 0, start=start)
    return new_head._own_text(make("llama"), text, examples * (LENGTH - 1), asked(share, tokens), Work(**work))


def asked(share: float, tokens: int) -> RunConfig:
    return RunConfig.from_dict({
        "model": "m", "output_dir": "o", "data": {"train": "t", "block_size": LENGTH},
        "distil": {"own_text": share, "tokens": tokens, "steps": 2}, "decision": {"code": "itq", "bits": 16},
        "training": {"per_device_train_batch_size": 2},
    })  # fmt: skip


def sizes(batches: list[dict]) -> list[int]:
    return [len(batch["labels"]) for batch in batches]


def test_a_share_of_the_positions_is_the_models_own():
    assert sizes(own(0.25, examples=60, tokens=40 * (LENGTH - 1))) == [2, 2, 2, 2, 2]


def test_of_a_short_text_the_share_is_taken_too():
    assert sizes(own(0.5, examples=7, tokens=10_000)) == [2, 2, 2, 1]


def test_only_what_the_model_chose_is_a_label():
    batch = own(0.5, examples=6, tokens=10_000, start=(5, 6))[0]
    assert batch["input_ids"][:, :2].tolist() == [[5, 6]] * 2 and batch["attention_mask"].all()
    assert (batch["labels"][:, :3] == IGNORE).all()
    assert torch.equal(batch["labels"][:, 3:], batch["input_ids"][:, 3:])


def test_nothing_is_written_unless_asked(monkeypatch):
    monkeypatch.setattr(new_head, "write", lambda *args: pytest.fail("it wrote"))
    assert own(0.0, examples=6, tokens=100) == []
    assert own(0.1, examples=2, tokens=100) == []  # less than one text
    assert own(0.5, examples=6, tokens=100, start=(1,) * (LENGTH - 1)) == []  # no room after the start


def test_text_that_was_written_before_a_stop_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(new_head, "WRITERS", 2)
    expected = own(0.5, examples=6, tokens=10_000, stages=Stages(tmp_path))
    (tmp_path / "own-4.safetensors").unlink()
    shown = []
    texts = torch.cat([batch["input_ids"] for batch in expected])
    assert len(texts.unique(dim=0)) == len(texts) == 6 and len(texts[:, 0].unique()) > 2  # no two pieces are alike
    found = own(0.5, 6, 10_000, stages=Stages(tmp_path), show=lambda *call: shown.append(call))
    assert shown == [("writing text", 4, 6)]
    assert all(torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("is_large", [True, False])
def test_what_a_text_tells_is_told_by_the_users_alone(monkeypatch, is_large):
    """The code starts from the counts and states of the user's text; it is distilled on both."""
    seen = {}
    monkeypatch.setattr(new_head, "is_worth_it", lambda num_classes: is_large)
    monkeypatch.setattr(new_head, "_attach", lambda model, decision, counts, hidden, *rest: seen.update(
        counts=float(counts.sum()), start=len(hidden)
    ))  # fmt: skip
    monkeypatch.setattr(new_head, "check_end", lambda *args: None)
    monkeypatch.setattr(new_head, "_learn", lambda model, teacher, config, text, hidden, labels, likely, work: (
        seen.update(learnt=len(hidden), likely=likely)
    ))  # fmt: skip
    rows = Dataset.from_list([{"input_ids": [1] * LENGTH, "labels": [1] * LENGTH}] * 6)
    new_head.fit_decision_layer(make("llama"), asked(0.5, 10_000), Text(lambda: rows, 0))
    positions = 6 * (LENGTH - 1)
    assert seen["start"] == positions and seen["learnt"] == 2 * positions
    assert seen["counts"] == pytest.approx(positions if is_large else 6 * LENGTH)  # expected, or counted
    if is_large:
        assert len(seen["likely"].ids) == 2 * positions


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, True, "0.5", float("nan")])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ConfigurationError, match=r"distil\.own_text"):
        Distillation(own_text=share)
