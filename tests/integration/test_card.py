"""The card that saving writes: what it tells, that the Hub can read it, and that nobody's own words are lost."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest
from architectures import make
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.repocard import metadata_load
from test_screening import screened
from transformers import AutoModelForCausalLM

import codehead
from codehead.models import card

BASE = "---\nlicense: apache-2.0\ntags: [codehead]\nbase_model: somebody/model\n---\nThe base.\n"


def saved(model, folder: Path) -> str:
    model.save_pretrained(folder)
    return (folder / card.NAME).read_text(encoding="utf-8")


def test_the_card_of_a_coded_model_tells_what_it_is(coded, tmp_path):
    text = saved(coded(head="mtl", width=3), tmp_path)
    assert "`LlamaForCausalLM` of transformers" in text and "MinRandom MTL-ECOC (24, 3)" in text
    assert "of the Softmax head's" in text and "The head is untrained." in text and "Not measured" in text
    assert "AutoModelForCausalLM.from_pretrained" in text and "it was not found" in text
    header = metadata_load(tmp_path / card.NAME)
    assert header["library_name"] == "transformers" and header["tags"] == list(card.TAGS)
    assert "base_model" not in header and "license" not in header
    assert str(tmp_path) not in text


def test_the_card_of_a_screened_model_tells_what_was_measured(tmp_path):
    model = screened()
    kept = model.screen.settings
    text = saved(model, tmp_path)
    assert f"{kept.measured:.3%} of {kept.test_positions:,} held-out positions; 90.000% is promised" in text
    assert "takes the dense head" in saved(screened(mode="exact", certificate="proof"), tmp_path)


def test_a_card_follows_the_model_and_keeps_what_others_wrote(coded, tmp_path):
    first = saved(coded(), tmp_path)
    own = first.replace("---\n\n<!--", "---\n\n# My model\n\nMy words.\n\n<!--") + "\nMy last words.\n"
    (tmp_path / card.NAME).write_text(own, encoding="utf-8")
    second = saved(coded(bits=31), tmp_path)
    assert "MinRandom ECOC (31, 0)" in second and "(24, 0)" not in second
    assert "My words." in second and second.endswith("\nMy last words.\n")


@pytest.mark.parametrize("theirs", ["Mine alone.\n", None, b"\xff\xfe"], ids=["without ours", "edited", "no text"])
def test_a_card_that_somebody_wrote_stays(theirs, coded, tmp_path):
    if theirs is None:
        theirs = saved(coded(), tmp_path).replace("The head is untrained.", "The head is trained.")
    content = theirs if isinstance(theirs, bytes) else theirs.encode()
    (tmp_path / card.NAME).write_bytes(content)
    coded(bits=31).save_pretrained(tmp_path)
    assert (tmp_path / card.NAME).read_bytes() == content


def test_base_and_licence_are_handed_on(coded, tmp_path):
    coded().save_pretrained(tmp_path / "first")
    (tmp_path / "first" / card.NAME).write_text(BASE)
    text = saved(AutoModelForCausalLM.from_pretrained(tmp_path / "first"), tmp_path / "second")
    assert "[somebody/model](https://huggingface.co/somebody/model). Its licence holds: apache-2.0." in text
    header = metadata_load(tmp_path / "second" / card.NAME)
    assert (header["base_model"], header["license"]) == ("somebody/model", "apache-2.0")


def test_a_model_of_the_hub_is_the_base(tmp_path, monkeypatch):
    (tmp_path / "cached.md").write_text("---\nlicense: mit\nbase_model: their/own-base\n---\n")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(tmp_path / "cached.md"))
    model = make("llama")
    model.config._name_or_path = "somebody/model"
    saved(codehead.attach(model, "minrandom", bits=24), tmp_path / "coded")
    header = metadata_load(tmp_path / "coded" / card.NAME)
    assert (header["base_model"], header["license"]) == ("somebody/model", "mit")


def test_a_broken_card_of_the_base_is_no_reason_not_to_save(coded, tmp_path):
    coded().save_pretrained(tmp_path / "first")
    (tmp_path / "first" / card.NAME).write_text("---\n: [\n---\n")
    assert "it was not found" in saved(AutoModelForCausalLM.from_pretrained(tmp_path / "first"), tmp_path / "second")


def test_what_a_conversion_measured_stands_in_the_card(coded, tmp_path):
    model = coded()
    before = {"tokens": 1200, "top1": 0.5, "top5": 0.75, "perplexity": 20.0}
    card.write(tmp_path, model, {"before": before, "after": {**before, "top1": 0.4, "perplexity": None}})
    text = (tmp_path / card.NAME).read_text()
    assert "Measured on 1,200 held-out tokens" in text and "| top-1 accuracy | 50.0% | 40.0% |" in text
    assert "| perplexity" not in text


@pytest.fixture
def pushed(monkeypatch):
    """Push a model to a Hub that has, or has not, a card; the card that is uploaded."""

    def push(model, theirs=None, **options):
        def load(place, **_):
            if Path(place).is_file():
                return original(place)
            if theirs is None:
                raise EntryNotFoundError("no card")
            return ModelCard(theirs)

        def commit(operations, **_):
            found.update({one.path_in_repo: Path(one.path_or_fileobj).read_text("utf-8") for one in operations
                          if one.path_in_repo == card.NAME})  # fmt: skip

        found, original, hub = {}, ModelCard.load, MagicMock()
        hub.create_repo.return_value.repo_id = "me/mine"
        hub.create_commit.side_effect = lambda **given: commit(**given)
        monkeypatch.setattr("transformers.utils.hub.ModelCard.load", load)
        monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: hub)
        model.push_to_hub("me/mine", **options)
        return found[card.NAME]

    return push


def test_what_is_pushed_has_the_card_of_the_model(coded, pushed, tmp_path):
    for model in coded(), screened():
        text = pushed(model, tags=["mine"])
        assert "of codehead" in text or "made by codehead" in text
        assert "automatically generated" not in text
        (tmp_path / card.NAME).write_text(text, encoding="utf-8")
        assert metadata_load(tmp_path / card.NAME)["tags"] == [*card.TAGS, "mine"]


def test_a_push_renews_our_part_and_leaves_what_others_wrote(coded, pushed, tmp_path):
    old = saved(coded(), tmp_path) + "\nMy words.\n"
    renewed = pushed(coded(bits=31), theirs=old)
    assert "MinRandom ECOC (31, 0)" in renewed and "(24, 0)" not in renewed and "My words." in renewed
    filled = ModelCard.from_template(ModelCardData(), model_description=card.TEMPLATE).content + "Mine alone.\n"
    for theirs in BASE + "Mine alone.\n", filled:
        alone = pushed(coded(), theirs=theirs)
        assert "Mine alone." in alone and "of codehead" not in alone
