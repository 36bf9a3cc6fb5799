from __future__ import annotations

from pathlib import Path

import pytest

from codehead.errors import ConfigurationError
from codehead.training.folder import locked, save_whole


class Writes:
    """Saves as a model or a tokenizer does: the content of some files."""

    def __init__(self, files: dict[str, str], error: type[BaseException] | None = None) -> None:
        self.files, self.error = files, error

    def save_pretrained(self, folder: Path) -> None:
        for name, content in self.files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
        if self.error is not None:
            raise self.error


OLD = {
    "config.json": "old",
    "model-00001-of-00002.safetensors": "old",
    "model-00002-of-00002.safetensors": "old",
    "model.safetensors.index.json": "old",
    "tokenizer.json": "old",
    "notes.safetensors": "mine",
}
NEW = {"config.json": "new", "model.safetensors": "new"}
TOKENIZER = {"tokenizer.json": "new", "templates/chat.jinja": "new"}


def content(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_new_model_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    Writes(OLD).save_pretrained(tmp_path)
    for _ in range(2):
        save_whole(Writes(NEW), Writes(TOKENIZER), tmp_path)
        assert content(tmp_path) == {**NEW, **TOKENIZER, "notes.safetensors": "mine"}
        assert not (tmp_path / ".unfinished").exists()


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_old_model_outlives_what_fails(tmp_path: Path, error: type[BaseException]) -> None:
    Writes(OLD).save_pretrained(tmp_path)
    with pytest.raises(error):
        save_whole(Writes(NEW), Writes(TOKENIZER, error), tmp_path)
    assert content(tmp_path) == OLD
    assert not (tmp_path / ".unfinished").exists()


@pytest.mark.parametrize("moves", range(4))
def test_a_kill_leaves_no_mixture_of_two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    from codehead.training import folder as saving

    Writes(OLD).save_pretrained(tmp_path)
    real, done = saving.os.replace, []

    def replace(*paths: Path) -> None:
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(paths)
        real(*paths)

    with monkeypatch.context() as patched:
        patched.setattr(saving.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            save_whole(Writes(NEW), Writes(TOKENIZER), tmp_path)
    assert not list(tmp_path.glob("model*.safetensors"))  # so that nothing is loaded
    save_whole(Writes(NEW), Writes(TOKENIZER), tmp_path)
    assert content(tmp_path) == {**NEW, **TOKENIZER, "notes.safetensors": "mine"}


def test_a_lock_goes_with_the_folders_that_were_made_for_it(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    with locked(place):
        assert place.is_dir()
        with pytest.raises(ConfigurationError, match=r"another command is using '.*b'"), locked(place):
            pass
    assert not (tmp_path / "a").exists()
    place.mkdir(parents=True)
    with locked(place):
        pass
    assert place.is_dir() and not list(place.iterdir())


def test_a_card_of_somebody_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    save_whole(Writes({**NEW, "README.md": "theirs"}), Writes(TOKENIZER), tmp_path)
    assert content(tmp_path)["README.md"] == "mine"
