"""No call of the command ends in a traceback, runs on for ever, or does what was not asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from bad_calls import bad_calls, prepare, words

QUICK = {
    "config": ("list", "hidden_text", "hidden_zero", "hidden_other", "layers_negative", "dtype_unknown", "package"),
    "entry": ("classes_negative", "rows_negative", "bits_text", "params_list"),
    "manifest": ("files_list", "file_number", "deep"),
    "tokenizer": ("tokenizer_list", "tokenizer_empty", "vocab_size: 1000000000000", "{here}/file"),
    "weights": ("cut", "dtype_number", "shape_negative", "fifo"),
    "data": ("deep.json", "deeper", "digits", "latin.parquet", "page", "roles", "chat.jsonl"),
    "yaml": ("finetune --config {here}/deep", "digits.yaml", "bad_date", "number_key", "recursive"),
    "setting": ("seed=4294967296", "learning_rate=.nan", "code=[a]", "beta1=2", "scheduler_kwargs", "r=1000000000000"),
    "line": ("--out ''", "fifo", "zero.txt", "/proc/new", "{long}", "protocol embed", "udcff", "recommend {model}"),
}
"""Parts of the lines that are run every time; the others take minutes."""
CALLS = [(kind, line) for kind, lines in bad_calls().items() for line in lines]


@pytest.fixture(scope="module")
def places(place, coded_folder, tmp_path_factory):
    here = tmp_path_factory.mktemp("bad")
    prepare(here, place / "model", coded_folder)
    return {
        "here": here, "model": place / "model", "coded": coded_folder, "text": place / "text.txt",
        "weights": place / "model" / "model.safetensors",
    }  # fmt: skip


def _calls(quick):
    chosen = [(kind, line) for kind, line in CALLS if any(part in line for part in QUICK[kind]) == quick]
    return [pytest.param(line, id=ascii(f"{kind}: {line[:150]}")) for kind, line in chosen]


def _refused(codehead, places, line, tmp_path, monkeypatch):
    """The call ends with status 2 and one message, and leaves nothing where it was called."""
    monkeypatch.chdir(tmp_path)
    status, _, err = codehead(*words(line, places))
    assert status == 2, err
    assert "Traceback" not in err
    assert "Error" in err
    assert not list(tmp_path.iterdir())
    assert not (places["here"] / "new" / "model.safetensors").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("line", _calls(quick=True))
def test_bad_calls_are_refused(codehead, places, line, tmp_path, monkeypatch):
    _refused(codehead, places, line, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("line", _calls(quick=False))
def test_all_other_bad_calls_are_refused(codehead, places, line, tmp_path, monkeypatch):
    _refused(codehead, places, line, tmp_path, monkeypatch)
