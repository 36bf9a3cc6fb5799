"""The demo's corpus: complete, deterministic, split by name, without a leak between the splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from codehead.errors import DataError
from codehead.lab.demo import SPLITS, Corpus, Documented, read_corpus

SOURCE = '''"""A module with a documentation string of its own.

Second paragraph."""

import nothing_that_exists


def public():
    """Does something that
    takes two lines.

    Details.
    """

    def inner():
        """Invisible from outside, so not documented."""


def _private():
    """Does something that nobody should ask about."""


class Thing:
    """Stands for a thing among other things."""

    def act(self):
        """Acts as things are wont to do."""

    def act_again(self):
        """Acts as things are wont to do."""
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A standard library of two modules, a test package and a foreign module."""
    (tmp_path / "os.py").write_text(SOURCE)
    for name in ("json/__init__.py", "json/tests/ignored.py", "test/ignored.py", "site-packages/foreign.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""The docstring of {name}, said at some length."""\n')
    (tmp_path / "not_in_the_library.py").write_text('"""This module is nobody\'s standard."""')
    (tmp_path / "abc.py").write_text("this is no Python (")
    return tmp_path


def everything(corpus: Corpus) -> list[str]:
    return [text for split in SPLITS for text in corpus.texts[split]]


def questions(corpus: Corpus) -> dict[str, str]:
    return {pair["completion"].strip(): pair["prompt"] for split in SPLITS for pair in corpus.pairs[split]}


def test_text_holds_every_distinct_documented_name(library: Path) -> None:
    names = {text.splitlines()[0] for text in everything(read_corpus(library))}
    assert names == {
        "module os",
        "function os.public",
        "function os._private",
        "class os.Thing",
        "method os.Thing.act",
        "module json",
    }


def test_pairs_ask_for_the_first_paragraph_of_public_names(library: Path) -> None:
    asked = questions(read_corpus(library))
    assert "`os.public`" in asked["Does something that takes two lines."]
    assert not any("_private" in question for question in asked.values())


def test_a_name_keeps_its_split(library: Path) -> None:
    assert Documented("os.path.join", "function", "x").split == Documented("os.path.join", "method", "other").split
    before = read_corpus(library)
    (library / "abc.py").write_text('"""One more module, which moves no other."""')
    after = read_corpus(library)
    assert all(set(before.texts[split]) <= set(after.texts[split]) for split in SPLITS)


def test_without_sources_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no documented Python sources .* use one that has them"):
        read_corpus(tmp_path)


def test_the_running_python_gives_enough_text_and_no_leak() -> None:
    corpus = read_corpus()
    assert sum(map(len, corpus.texts["train"])) > 1_000_000
    assert [len(corpus.pairs[split]) > least for split, least in (("train", 2000), ("test", 200))] == [
        True,
        True,
    ]
    assert len(corpus.pairs["validation"]) > 100
    training_text = {text.split("\n\n")[1] for text in corpus.texts["train"]}
    assert not training_text & {text.split("\n\n")[1] for text in corpus.texts["test"]}
    outputs = [pair["completion"] for split in SPLITS for pair in corpus.pairs[split]]
    assert len(outputs) == len(set(outputs))
