"""Options of a decision layer: what is not given on the command line is not part of the configuration."""

from __future__ import annotations

from typing import Any

import typer
from typer.testing import CliRunner

from codehead.cli.options import decision_options, given


def found(line: str) -> dict[str, Any]:
    """The fields that a command line sets."""
    app, seen = typer.Typer(), []

    @app.command()
    @decision_options
    def command(context: typer.Context, **decision: Any) -> None:
        seen.append(given(context.params))

    result = CliRunner().invoke(app, line.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen[0]


def test_no_option_is_no_decision_layer():
    assert found("") == {}


def test_options_are_fields():
    line = "--code minrandom --bits 50 --param parity=3 --head mtl --head-param bias=true --token-bias"
    assert found(line) == {
        "code": "minrandom",
        "bits": 50,
        "code_params": {"parity": 3},
        "head": "mtl",
        "head_params": {"bias": True},
        "token_bias": True,
    }
