"""`codehead code`, run as a command of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from codehead.cli.advice import code
from codehead.codes import build, load, quality
from codehead.errors import ConfigurationError

app = typer.Typer()
app.command()(code)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100"})


def test_json_is_all_there_is() -> None:
    result = run("minrandom", "--classes", "40", "--bits", "20", "--seed", "3", "--param", "candidates=2", "--json")
    codebook = build("minrandom", 40, bits=20, seed=3, candidates=2)
    printed = json.loads(result.stdout)
    assert printed.pop("quality") == quality(codebook).as_dict()
    assert printed == {
        "design": "minrandom",
        "num_classes": 40,
        "length": 20,
        "ternary": False,
        "seed": 3,
        "params": {"candidates": 2},
        "bytes": 120,
        "checksum": codebook.checksum,
    }


def test_the_table_shows_the_measures() -> None:
    result = run("minimal", "--classes", "10")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["row", "distance,", "least", "1", "all", "45", "pairs"] in lines
    bars = [(line[0], line[-1]) for line in lines if len(line) == 3 and "█" in line[1]]
    assert bars == [("1", "15"), ("2", "18"), ("3", "10"), ("4", "2")]


def test_many_distances_are_shown_in_ranges() -> None:
    result = run("dense_random", "--classes", "100", "--bits", "400", "--param", "candidates=1")
    counts = [int(line.split()[-1].replace(",", "")) for line in result.stdout.splitlines() if " … " in line]
    assert len(counts) <= 16
    assert sum(counts) == 100 * 99 // 2


def test_a_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "code.safetensors"
    arguments = ["gray", "--classes", "10", "--out", str(path)]
    assert f"Saved to {path}" in run(*arguments).stdout
    assert load(path).checksum == build("gray", 10).checksum
    again = run(*arguments[:2], "20", *arguments[3:])
    assert isinstance(again.exception, ConfigurationError)
    assert "use --overwrite" in str(again.exception)
    assert load(path).num_classes == 10
    assert run(*arguments[:2], "20", *arguments[3:], "--overwrite").exit_code == 0
    assert load(path).num_classes == 20


def test_a_custom_matrix_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "code.csv"
    path.write_text("1,-1\n-1,1\n0,1\n")
    result = run("custom", "--classes", "3", "--param", f"path={path}", "--json")
    assert json.loads(result.stdout)["ternary"] is True


@pytest.mark.parametrize("pair", ["candidates", "=3"])
def test_params_are_pairs(pair: str) -> None:
    error = run("minrandom", "--classes", "10", "--param", pair).exception
    assert isinstance(error, ConfigurationError)
    assert f"--param {pair!r} is not KEY=VALUE" in str(error)
