"""The API page is made from docstrings, and names everything that is public."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import codehead

GENERATOR = Path(__file__).resolve().parents[2] / "docs" / "make_api.py"


@pytest.fixture(scope="module")
def page() -> str:
    spec = importlib.util.spec_from_file_location("make_api", GENERATOR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.page()


def test_it_has_every_public_name(page):
    headings = {line.split()[-1] for line in page.splitlines() if line.startswith("## ")}
    assert headings == {f"codehead.{name}" for name in codehead.__all__ if name != "__version__"}


@pytest.mark.parametrize("name", ["DESIGNS", "HEADS", "LOSSES", "DECODERS"])
def test_it_has_every_registered_part(page, name):
    registry = getattr(codehead, name)
    for part in registry.names():
        assert f"### {registry.kind} {part}\n" in page


def test_everything_is_explained(page):
    assert "```text\n\n```" not in page
