"""Tables in documents come from result files, and the committed ones are up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from codehead.errors import DataError
from codehead.lab.reports.evidence import read_results
from codehead.lab.reports.summary import summarise
from codehead.lab.reports.tables import BLOCK, embed, markdown_table, rendered

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = [path for path in DOCUMENTS if BLOCK.search(path.read_text(encoding="utf-8"))]
RESULTS = ROOT / "results" / "tinystories-8192"


def test_some_document_shows_results():
    assert ROOT / "docs/results.md" in MARKED


@pytest.mark.parametrize("document", MARKED, ids=lambda path: path.name)
def test_committed_tables_are_those_of_the_committed_results(document):
    text = document.read_text(encoding="utf-8")
    assert rendered(text, document.parent) == text


def test_a_typed_number_is_replaced(tmp_path):
    document = tmp_path / "page.md"
    setting = summarise(read_results(RESULTS))[0].setting
    document.write_text(f"Before.\n<!-- results: {RESULTS} {setting} -->\n| 99% |\n<!-- end of results -->\nAfter.\n")
    assert embed(document)
    text = document.read_text(encoding="utf-8")
    assert "99%" not in text
    assert markdown_table([row for row in summarise(read_results(RESULTS)) if row.setting == setting]) in text
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert not embed(document)


def test_a_setting_without_results_is_named():
    with pytest.raises(DataError, match="has the setting '7M'"):
        rendered(f"<!-- results: {RESULTS} 7M -->\n<!-- end of results -->", ROOT)


def test_some_of_the_cells():
    text = f"<!-- results: {RESULTS} 1.2M only softmax,minimal -->\n<!-- end of results -->"
    table = rendered(text, ROOT)
    assert "Softmax" in table and "Minimal ECOC" in table and "MinRandom" not in table
    assert rendered(table, ROOT) == table


def test_a_cell_without_results_is_named():
    with pytest.raises(DataError, match="is of the cell 'minimum'"):
        rendered(f"<!-- results: {RESULTS} 1.2M only softmax,minimum -->\n<!-- end of results -->", ROOT)


def test_results_that_were_read_by_one_decoder_have_no_table_of_decoders():
    with pytest.raises(DataError, match="was read by several decoders"):
        rendered(f"<!-- decoders: {RESULTS} -->\n<!-- end of decoders -->", ROOT)
