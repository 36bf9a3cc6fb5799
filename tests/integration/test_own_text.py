"""Text that a model writes itself, alone and as a part of what a new head learns from."""

from __future__ import annotations

import pytest
import torch
from architectures import VOCAB, make
from datasets import Dataset

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


def test_text_comes_from_the_whole_distribution_whatever_the_model_generates_with():
    model, first = make("llama"), beginnings([], 8, VOCAB, seed=0)
    expected = write(model, first, LENGTH, seed=0)
    for name, value in {"temperature": 0.01, "top_k": 1, "top_p": 0.1, "repetition_penalty": 5.0}.items():
        setattr(model.generation_config, name, value)
    assert torch.equal(write(model, first, LENGTH, seed=0), expected)


def mixed(share: float, examples: int, tokens: int, start: tuple[int, ...] = (), **work) -> list[dict]:
    """The batches that a head learns from: examples of the token 1, and what the model writes."""
    rows = Dataset.from_list([{"input_ids": [1] * LENGTH, "labels": [1] * LENGTH}] * examples)
    distil = {"own_text": share, "tokens": tokens}
    config = RunConfig.from_dict({
        "model": "m", "output_dir": "o", "data": {"train": "t", "block_size": LENGTH}, "distil": distil,
        "decision": {"code": "itq", "bits": 16}, "training": {"per_device_train_batch_size": 2},
    })  # fmt: skip
    text = Text(lambda: rows, 0, start=start)
    return list(new_head._batches(make("llama"), text, config, Work(**work)))


def own(batch: dict) -> bool:
    return bool((batch["input_ids"] != 1).any())


def test_a_share_of_the_positions_is_the_models_own_all_the_way():
    batches = mixed(0.25, examples=60, tokens=60 * (LENGTH - 1))
    written = [own(batch) for batch in batches]
    assert sum(len(batch["labels"]) for batch in batches if own(batch)) == 15  # texts, a quarter of 60
    for end in (8, 16, 24):
        assert sum(written[:end]) == end // 4


def test_of_a_short_text_the_share_is_taken_too():
    batches = mixed(0.5, examples=6, tokens=10_000)
    assert [len(batch["labels"]) for batch in batches if own(batch)] == [2, 2, 2]


def test_only_what_the_model_chose_is_a_label():
    batch = next(batch for batch in mixed(0.5, examples=6, tokens=10_000, start=(5, 6)) if own(batch))
    assert batch["input_ids"][:, :2].tolist() == [[5, 6]] * len(batch["labels"])
    assert (batch["labels"][:, :3] == IGNORE).all()
    assert torch.equal(batch["labels"][:, 3:], batch["input_ids"][:, 3:])
    assert batch["attention_mask"].all()


def test_nothing_is_written_unless_asked(monkeypatch):
    monkeypatch.setattr(new_head, "write", lambda *args: pytest.fail("it wrote"))
    assert not any(map(own, mixed(0.0, examples=6, tokens=100)))
    assert not any(map(own, mixed(0.1, examples=2, tokens=100)))  # less than one text


def test_text_that_was_written_before_a_stop_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(new_head, "WRITERS", 2)
    expected = mixed(0.5, examples=6, tokens=10_000, stages=Stages(tmp_path))
    (tmp_path / "own-4.safetensors").unlink()
    shown = []
    found = mixed(0.5, 6, 10_000, stages=Stages(tmp_path), show=lambda *call: shown.append(call))
    assert shown == [("writing text", 4, 6)]
    assert all(torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, True, "0.5", float("nan")])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ConfigurationError, match=r"distil\.own_text"):
        Distillation(own_text=share)
