"""The page and the Markdown say what whole result files say, name the damaged ones, and stand alone."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from codehead.errors import DataError
from codehead.lab.reports.evidence import read_evidence
from codehead.lab.reports.paper import TABLES, compare
from codehead.lab.reports.pictures import analyses
from codehead.lab.reports.report import (
    Report,
    compose,
    findings,
    harmless,
    instruction_of,
    page,
    plain,
    render,
    write_markdown,
    write_page,
)
from codehead.lab.reports.summary import Estimate, Row, summarise
from codehead.lab.reports.tables import Table, markdown, markdown_table, rich_table
from codehead.lab.result import Result
from made_up_results import CELLS, HOSTILE, PROMPTS, made_up, timing, write_protocol

REAL = Path(__file__).resolve().parents[2] / "results" / "tinystories-8192"


class Outline(HTMLParser):
    """What a reader's browser makes of the page: open elements, ids, texts of headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attributes}
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [(tag, values[name]) for name in ("src", "href", "srcset", "action") if name in values]
        self.headings += [""] if tag in ("h1", "h2") else []

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("h1", "h2") and not self.headings[-1]:
            self.headings[-1] = data.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the paper's protocol 1 in small."""
    return write_protocol(tmp_path_factory.mktemp("one") / "results", 1)


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return compose(folder)


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return page(report)


@pytest.fixture(scope="module")
def text(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Markdown, with one of its pictures."""
    path = write_markdown(replace(report, pictures=report.pictures[:1]), tmp_path_factory.mktemp("markdown"))
    return path.read_text(encoding="utf-8")


def rows_of(paper: int, tmp_path: Path) -> list:
    return summarise(read_evidence(write_protocol(tmp_path / "results", paper)))


def cells_of(table: Table) -> list[dict[str, str]]:
    return [{f"{h.group}: {h.text}": text for h, text in zip(table.headings, row, strict=True)} for row in table.rows]


def test_the_parts_come_in_the_order_of_reading(html: str) -> None:
    outline = Outline(html)
    assert outline.headings == [
        "made-up-1", "Summary", "Beside the paper", "Tables", "Pictures", "Answers", "Where the numbers come from",
    ]  # fmt: skip


def test_the_page_needs_nothing_but_itself(html: str) -> None:
    outline = Outline(html)
    outside = [
        (tag, address) for tag, address in outline.addresses if not address.startswith(("#", "data:image/png;base64,"))
    ]
    assert outside == [("a", "https://openreview.net/forum?id=NNkDZsBu82")]
    assert not {"script", "link", "iframe", "object"} & set(outline.tags)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert len(outline.ids) == len(set(outline.ids))


def test_what_a_model_wrote_is_text_and_not_markup(html: str, text: str) -> None:
    assert "&lt;script&gt;document.body" in html
    assert "colours &amp; say why" in html
    for written in (html, text):
        assert not re.search(r"(?<!\\)<script>", written)
        assert not set("\x00\x07\u202e") & set(written)
        assert "Below is an instruction" not in written
    assert r"\<script\>" in text


def test_the_same_results_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    twice = []
    for number in range(2):
        report = compose(folder)
        few = replace(report, pictures=(report.pictures[0], *report.pictures[-2:]))
        (tmp_path / str(number)).mkdir()
        written = [write_page(few, tmp_path / str(number)), write_markdown(few, tmp_path / str(number))]
        twice.append([path.read_bytes() for path in [*written, *sorted(written[0].parent.glob("*.png"))]])
    assert len(twice[0]) == 4
    assert twice[0] == twice[1]


def test_a_hand_edited_file_is_named_and_not_averaged(tmp_path: Path) -> None:
    results = write_protocol(tmp_path / "results", 1)
    path = results / "minimal--seed-1.json"
    values = json.loads(path.read_text())
    values["metrics"]["test"]["top1"] = 0.99
    path.write_text(json.dumps(values))
    (results / "timing" / "all.json").write_text("{")
    report = compose(results)
    assert [file.name for file in report.damaged] == ["minimal--seed-1.json", "timing/all.json"]
    (row,) = [row for row in summarise(read_evidence(results)) if row.cell == "minimal"]
    assert row.seeds == 2 and row.values["top1"].mean < 0.3 and not row.times
    few = replace(report, pictures=())
    for text in (page(few), *(markdown(table) for table in few.tables)):
        assert "0.99" not in text
    assert re.search(r"<code>minimal--seed-1.json</code> does not match its checksum", page(few))
    assert "minimal--seed-1.json" not in str(few.files)


def test_the_notice_stands_in_the_markdown_too(tmp_path: Path) -> None:
    made_up(0, "1.2M", "softmax", 0).write(tmp_path / "results" / "good.json")
    (tmp_path / "results" / "bad.json").write_text("not JSON")
    result = render(tmp_path / "results")
    assert [file.name for file in result.damaged] == ["bad.json"]
    assert "> - `bad.json` is not valid JSON" in result.markdown.read_text(encoding="utf-8")


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    made_up(0, "1.2M", "softmax", 0).write(tmp_path / "good.json")
    Result("other", {}, {"layers": 3}, {}).write(tmp_path / "other.json")
    (damaged,) = read_evidence(tmp_path).damaged
    assert (damaged.name, damaged.reason) == ("other.json", "is not a result of a protocol")


def test_two_protocols_in_one_folder_are_refused(tmp_path: Path) -> None:
    made_up(1, "", "softmax", 0).write(tmp_path / "a.json")
    made_up(2, "", "softmax", 0).write(tmp_path / "b.json")
    with pytest.raises(DataError, match=r"'made-up-1' \(a\.json\) and 'made-up-2' \(b\.json\)"):
        render(tmp_path)


def test_one_run_is_not_counted_twice(tmp_path: Path) -> None:
    made_up(1, "", "softmax", 0).write(tmp_path / "a.json")
    made_up(1, "", "softmax", 0).write(tmp_path / "copy.json")
    with pytest.raises(DataError, match=r"'a\.json' and 'copy\.json' hold the same"):
        render(tmp_path)


def test_a_cell_that_was_changed_between_two_seeds_is_refused(tmp_path: Path) -> None:
    first, second = (made_up(1, "", "softmax", seed) for seed in (0, 1))
    for seed, result in ((0, first), (1, second)):
        run = {"decision": {"bits": 9, "seed": seed}, "seed": seed}
        replace(result, config={**result.config, "run": run}).write(tmp_path / f"{seed}.json")
    assert len(read_evidence(tmp_path).results) == 2
    run = {"decision": {"bits": 12, "seed": 1}, "seed": 1}
    replace(second, config={**second.config, "run": run}).write(tmp_path / "1.json")
    with pytest.raises(DataError, match=r"'0\.json' and '1\.json' are of the same cell"):
        read_evidence(tmp_path)


def test_protocol_1_stands_beside_the_paper(tmp_path: Path) -> None:
    (table,) = compare(1, rows_of(1, tmp_path))
    lines = cells_of(table)
    assert [line["The paper: Configuration"] for line in lines] == [row.label for row in TABLES[1].rows]
    assert [line["Ours: Configuration"] for line in lines] == [
        "Softmax", "Minimal ECOC (13, 0)", "MinRandom ECOC (50, 0)", "Minimal MTL-ECOC (13, 80)",
        "MinRandom MTL-ECOC (50, 80)",
    ]  # fmt: skip
    assert lines[1]["The paper: Time"] == "1:05"
    assert lines[4]["The paper: of Softmax"] == "63.6%"
    assert lines[4]["Ours: Parameters"] == "644,000"
    assert lines[4]["Ours: of Softmax"] == "139.2%"  # of the times: 1.42 s against 1.02 s
    assert "of Softmax" in table.caption


def test_hidden_widths_are_matched_by_their_order(tmp_path: Path) -> None:
    (table,) = compare(2, rows_of(2, tmp_path), "minilm")
    lines = cells_of(table)
    matched = {line["The paper: Configuration"]: line["Ours: Configuration"] for line in lines}
    assert matched["Minimal (16, 1024)"] == "Minimal (13, 160)"
    assert matched["MinRandom (50, 512)"] == "MinRandom (50, 80)"
    assert matched["MinRandom (50, 128)"] == "MinRandom (50, 20)"
    assert {line["The paper: of highest"] for line in lines} >= {"100.0%", "98.9%"}
    assert "not values" in table.caption and "roberta-large; ours is by minilm" in table.caption


def test_codeword_lengths_are_matched_by_n(tmp_path: Path) -> None:
    rows = [row for row in rows_of(3, tmp_path) if row.cell != "n-75"]
    (table,) = compare(3, rows)
    assert [line["Ours: Configuration"] for line in cells_of(table)] == [
        "Minimal (13, 80)", "MinRandom (25, 80)", "MinRandom (50, 80)", "–", "MinRandom (100, 80)",
    ]  # fmt: skip


def test_backbones_are_matched_by_family_and_n(tmp_path: Path) -> None:
    (table,) = compare(4, rows_of(4, tmp_path))
    matched = {line["The paper: Configuration"]: line["Ours: Configuration"] for line in cells_of(table)}
    assert matched == {
        "OPT-1.3B: MinRandom (50, 512)": "opt: MinRandom (50, 80)",
        "Qwen2-1.5B: MinRandom (75, 512)": "–",  # two heads, none with 75 bits
        "TinyLlama-1.1B: MinRandom (100, 512)": "llama: MinRandom (100, 80)",
    }


def test_shares_of_every_metric_are_taken_per_seed(tmp_path: Path) -> None:
    rows = rows_of(1, tmp_path)
    row = next(row for row in rows if row.cell == "minrandom-50-mtl")

    def f1(cell: str, seed: int) -> float:
        return float(made_up(1, "", cell, seed).metrics["answers"]["bertscore"]["f1"])

    expected = sum(f1("minrandom-50-mtl", seed) / f1("softmax", seed) for seed in range(3)) / 3
    assert row.values["f1_share"].mean == pytest.approx(expected)
    assert row.values["perplexity_ratio"].mean > 1
    assert row.times["answer_seconds"] == pytest.approx(1.42)


def test_the_full_table_tells_everything_and_that_of_documents_stays_narrow(tmp_path: Path) -> None:
    results = write_protocol(tmp_path / "results", 1)
    full = markdown(compose(results).tables[0]).splitlines()[0]
    narrow = markdown_table(summarise(read_evidence(results))).splitlines()[0]
    for heading in ("Resident", "× Softmax", "Answers", "Tokens/s"):
        assert f" {heading} |" in full and f" {heading} |" not in narrow
    assert "| P | R | F1 | of Softmax |" in narrow


def test_the_terminal_has_room_for_answers(tmp_path: Path) -> None:
    console = Console(width=80, file=StringIO())
    console.print(rich_table(rows_of(1, tmp_path), "Heads"))
    text = console.file.getvalue()
    assert "F1" in text and "…" not in text


def test_findings_are_numbers_of_the_rows(tmp_path: Path) -> None:
    rows = rows_of(1, tmp_path)
    text = " ".join(findings(rows))
    best = next(row for row in rows if row.cell == "minrandom-50")
    share = best.values["share"]
    assert best.label in text
    assert f"{100 * share.mean:.1f}\u00a0±\u00a0{100 * share.half_width:.1f}% of Softmax’s top-1 accuracy" in text
    single = [replace(row, seeds=1) for row in rows]
    assert "one seed" in findings(single)[-1]


def test_findings_count_bytes_where_they_are_known(tmp_path: Path) -> None:
    softmax, *heads = [replace(row, parameter_share=1.0) for row in rows_of(1, tmp_path)]
    best = max(heads, key=lambda row: row.values["share"].mean)
    weighed = [replace(softmax, byte_share=1.0), *(replace(row, byte_share=0.01) for row in heads)]
    text = " ".join(findings(weighed))
    assert f"Of the {len(heads)} heads with at most 2% of Softmax’s bytes, {best.label} (1.00%) keeps most" in text
    assert "parameters" not in text


def test_an_overlap_in_one_metric_alone_names_it(tmp_path: Path) -> None:
    softmax, one, two, *_ = rows_of(1, tmp_path)
    softmax = replace(softmax, byte_share=1.0)

    def row(of: Row, share: float, f1: float) -> Row:
        values = {"share": Estimate(share, 0.01), "f1_share": Estimate(f1, 0.05)}
        return replace(of, values=values, byte_share=0.01)

    apart, alike = [row(one, 0.9, 0.8), row(two, 0.5, 0.75)], [row(one, 0.9, 0.8), row(two, 0.89, 0.75)]
    assert f"the interval of {two.name} overlaps in BERTScore F1." in " ".join(findings([softmax, *apart]))
    assert f"the interval of {two.name} overlaps." in " ".join(findings([softmax, *alike]))


@pytest.mark.parametrize(
    ("paper", "names"),
    [
        (0, set()),
        (1, {"length"}),
        (2, {"length", "width"}),
        (3, {"length"}),
        (4, {"length"}),
    ],
)
def test_pictures_are_drawn_where_there_is_something_to_see(paper: int, names: set[str], tmp_path: Path) -> None:
    pictures = {picture.name: picture for picture in analyses(rows_of(paper, tmp_path))}
    assert set(pictures) == names
    if paper == 2:
        assert [key.name for key in pictures["width"].keys] == ["Softmax", "Minimal, n = 13", "MinRandom, n = 50"]
    assert all(panel.alt for picture in pictures.values() for panel in picture.panels)


def test_heads_of_different_width_make_no_curve_of_lengths(tmp_path: Path) -> None:
    rows = rows_of(1, tmp_path)
    decisions = [dict(row.decision or {}) for row in rows]
    for decision in decisions:
        decision["width"] = decision.get("bits", 0) if decision.get("head") == "mtl" else 0
    wider = [
        replace(row, decision=decision if row.decision else None) for row, decision in zip(rows, decisions, strict=True)
    ]
    (length,) = [picture for picture in analyses(wider) if picture.name == "length"]
    assert [key.name for key in length.keys] == ["Softmax", "ECOC head"]


def test_every_picture_stands_in_the_page_and_is_described(html: str, report: Report) -> None:
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', html)
    assert [unescape(alt) for _, alt in shown] == [picture.alt for picture in report.pictures]
    for data, alt in shown:
        with Image.open(BytesIO(b64decode(data))) as image:
            assert min(image.size) >= 500
        assert len(alt) > 20


def test_tables_are_readable_aloud(html: str) -> None:
    outline = Outline(html)
    assert outline.tags.count("caption") == outline.tags.count("table") == 2
    body = re.search(r"<tbody>.*?</tbody>", html, re.DOTALL)
    assert body and body[0].count('<th scope="row"') == body[0].count("<tr")


def test_prompts_are_shortened_sensibly() -> None:
    assert instruction_of(PROMPTS[1]) == ("Shorten the text.", "The cat sat on the mat for a very long time.")
    question, context = instruction_of("x" * 1000 + " What then?")
    assert question.startswith("…") and question.endswith("What then?") and len(question) < 420 and not context
    assert harmless("a\r\nb") == "a\nb"
    assert len(harmless(HOSTILE * 9)) < 710
    assert plain("# a\n| *b*") == r"\# a \| \*b\*"


def test_markdown_holds_the_same_parts_in_the_same_order(text: str) -> None:
    order = [
        "# made-up-1",
        "**Top-1",
        "## Beside the paper",
        "## All heads",
        "(tradeoff.png)",
        "## Answers",
        "## Where",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_the_origin_names_machine_encoder_and_files(html: str) -> None:
    for fact in (
        "A processor",
        "not comparable",
        "commit 0123456789",
        "minilm, layer 6",
        "50 min 15 s",
        "alpaca.json",
        "runs started 2026-01-01 12:00 to 2026-01-03 12:00 (UTC)",
        "2026-02-01 08:30 (UTC)",
        "Another processor, cores: 4, threads per run: 2; commit fedcba9876",
        "training started 2025-12-24 18:00 (UTC); A processor",
        "5 interleaved repeats, bfloat16; A processor",
    ):
        assert fact in html
    assert html.count("--seed-") == 3 * len(CELLS[1])
    assert "timing/all.json" in html


def test_results_without_timing_or_answers_make_a_report_too(tmp_path: Path) -> None:
    for result in (made_up(1, "", "softmax", 0), made_up(1, "", "minimal", 0)):
        metrics = {key: value for key, value in result.metrics.items() if key != "answers"}
        replace(result, metrics=metrics).write(tmp_path / f"{result.config['cell']}.json")
    report = compose(tmp_path)
    assert not report.samples
    assert "F1" not in {heading.text for heading in report.tables[0].headings}
    assert timing(1, "").metrics["cells"].keys() == CELLS[1].keys()


def test_the_committed_results_make_a_report() -> None:
    report = compose(REAL)
    assert report.damaged == ()
    assert [table.caption for table in report.tables] == ["1.2M tokens", "2.4M tokens"]
    assert {"tradeoff", "curves-1.2M", "curves-2.4M", "length"} <= {picture.name for picture in report.pictures}
    assert "Rows of one seed have none" in report.findings[-1]
