from __future__ import annotations

import json

import pytest

from codehead.errors import CheckpointError
from codehead.lab.result import Result


@pytest.fixture
def result():
    return Result(name="x", config={"bits": 50}, metrics={"top1": 0.25, "naïve": None}, provenance={"seed": 0})


def test_written_and_read(result, tmp_path):
    path = result.write(tmp_path / "deep" / "result.json")
    assert Result.read(path) == result
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda values: values["metrics"].update(top1=0.5), "edited by hand"),
        (lambda values: values.update(name="y"), "edited by hand"),
        (lambda values: values.pop("checksum"), "does not match its checksum"),
        (lambda values: values.pop("config"), "missing or unknown fields: config"),
        (lambda values: values.update(more=1), "missing or unknown fields: more"),
        (lambda values: values.update(schema_version=3), "schema_version 3"),
    ],
)
def test_edited_files_are_refused(result, tmp_path, edit, message):
    path = result.write(tmp_path / "result.json")
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        Result.read(path)


def test_broken_and_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        Result.read(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"name": ')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Result.read(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        Result.read(tmp_path / "list.json")


def test_a_failed_write_leaves_the_old_file(result, tmp_path):
    path = result.write(tmp_path / "result.json")
    broken = Result(name="x", config={}, metrics={"top1": float("nan")}, provenance={})
    with pytest.raises(ValueError, match="not JSON compliant"):
        broken.write(path)
    assert Result.read(path) == result
    assert len(list(tmp_path.iterdir())) == 1


def test_key_order_does_not_change_the_checksum(result):
    turned = Result(name="x", config={"bits": 50}, metrics={"naïve": None, "top1": 0.25}, provenance={"seed": 0})
    assert turned.checksum == result.checksum
