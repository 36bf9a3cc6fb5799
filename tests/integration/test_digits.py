"""The example of another output space runs as it is written."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"


def test_digits_are_learnt_and_drawn_with_every_last_layer(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    spec = importlib.util.spec_from_file_location("digits", SCRIPT)
    digits = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "digits", digits)  # dataclasses look their module up
    spec.loader.exec_module(digits)
    found = digits.main(steps=40, out=tmp_path / "digits.png")
    assert list(found) == ["Softmax", "independent bits", "chain of bits"]
    assert all(0 < bits < math.log2(digits.KINDS) for bits in found.values())
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("bits per patch") == 3
