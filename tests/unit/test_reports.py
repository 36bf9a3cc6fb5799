"""Reports say what the result files say: means, intervals and shares over seeds."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text
from PIL import Image

from codehead.errors import CheckpointError, DataError
from codehead.lab.baselines import FILE_KEY
from codehead.lab.reports.drawing import INK, place_labels, pyplot
from codehead.lab.reports.evidence import read_results
from codehead.lab.reports.pictures import _best_of_each_budget, frontier, pictures
from codehead.lab.reports.report import findings, render
from codehead.lab.reports.summary import (
    Estimate,
    Row,
    final_loss,
    label_of,
    setting_size,
    short_name,
    summarise,
    t_quantile,
)
from codehead.lab.reports.tables import markdown_table, rich_table
from codehead.lab.result import Result

MTL = {"design": "minrandom", "bits": 50, "head": "mtl", "width": 81, "loss": "bitwise", "decoder": "likelihood"}
LINEAR = {**MTL, "design": "minimal", "bits": 13, "head": "linear", "width": 0}
HARDWARE = {"cpu": "a processor", "cores": 2, "threads": 2, "gpu": None}
PROVENANCE = {"hardware": HARDWARE, "packages": {"torch": "2", "transformers": "5"}, "git": None, "codehead": "0"}


def result(
    head: str, seed: int, top1: float, decision: dict[str, Any] | None, parameters: int, setting: str = ""
) -> Result:
    test = {"top1": top1, "top5": 2 * top1, "perplexity": 10.0, "bits_per_byte": 1.5}
    test |= {"node_loss": None, "bit_accuracy": None} if decision is None else {"node_loss": 0.3, "bit_accuracy": 0.9}
    return Result(
        f"made-up/{head}/{seed}",
        {"protocol": "made-up", "cell": head, "setting": setting, "seed": seed, "reference": "softmax"},
        {
            "test": test,
            "size": {"head_parameters": parameters},
            "decision": decision,
            "train_seconds": 12.0,
            "history": [{"step": step, "loss": 1.0 / step} for step in range(1, 21)],
        },
        PROVENANCE,
    )


def made_up(setting: str = "") -> list[Result]:
    """Two seeds; the MTL head reaches 80% and 90% of the Softmax of the same seed."""
    return [
        result("softmax", 0, 0.50, None, 1000, setting),
        result("softmax", 1, 0.40, None, 1000, setting),
        result("mtl", 0, 0.40, MTL, 500, setting),
        result("mtl", 1, 0.36, MTL, 500, setting),
        result("minimal", 0, 0.10, LINEAR, 20, setting),
        result("minimal", 1, 0.10, LINEAR, 20, setting),
    ]


def write(results: list[Result], folder: Path) -> Path:
    for number, one in enumerate(results):
        one.write(folder / f"{number}.json")
    return folder


def test_shares_are_taken_per_seed() -> None:
    rows = {row.label: row for row in summarise(made_up())}
    share = rows["MinRandom MTL-ECOC (50, 81)"].values["share"]
    assert share.mean == pytest.approx(0.85)
    assert share.half_width == pytest.approx(12.706 * 0.0707107 / 2**0.5, rel=1e-4)
    assert rows["MinRandom MTL-ECOC (50, 81)"].parameter_share == 0.5
    assert rows["Softmax"].values["share"].mean == 1


def test_the_reference_comes_first_then_the_small_heads() -> None:
    assert [row.parameters for row in summarise(made_up())] == [1000, 20, 500]


def test_a_missing_reference_leaves_the_share_out() -> None:
    (row,) = summarise(made_up()[2:4])
    assert row.parameter_share is None
    assert "share" not in row.values


def test_a_seed_that_the_reference_lacks_is_told() -> None:
    rows = summarise([one for one in made_up("10M") if one.name != "made-up/softmax/1"])
    assert [row.unmatched for row in rows] == [(), (1,), (1,)]
    assert "share" not in rows[1].values
    (told,) = [text for text in findings(rows) if "Not compared" in text]
    assert "10M tokens: Minimal ECOC (13, 0) (seed 1); 10M tokens: MinRandom MTL-ECOC (50, 81) (seed 1)." in told
    assert not any("Not compared" in text for text in findings(summarise(made_up())))


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.706), (2, 4.303), (30, 2.042), (60, 2.000), (1000, 1.962)])
def test_t_quantiles(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=1.5e-3)


def test_one_seed_has_no_interval() -> None:
    assert Estimate.of([0.25]) == Estimate(0.25, None)


def test_final_loss_is_the_mean_of_the_last_tenth() -> None:
    assert final_loss([{"loss": float(i)} for i in range(20)]) == 18.5
    assert final_loss([]) is None


def test_settings_sort_by_size() -> None:
    assert sorted(["40M", "2.4M", "1B", "500k", "long"], key=setting_size) == ["500k", "2.4M", "40M", "1B", "long"]
    assert sorted(["V16000", "V2000", "V100-b", "V100-a"], key=setting_size) == ["V100-a", "V100-b", "V2000", "V16000"]


def test_the_label_names_another_loss() -> None:
    decision = {**LINEAR, "loss": "codeword"}
    assert label_of(result("x", 0, 0.1, decision, 1)) == "Minimal ECOC (13, 0) + codeword loss"


def test_markdown_shows_values_and_leaves_empty_columns_out() -> None:
    table = markdown_table(summarise(made_up()))
    header, _, softmax, minimal, mtl = table.splitlines()
    assert softmax.startswith("| Softmax | 1,000 | 100.0% | – | 45.0 ± 63.5% |")
    assert mtl.startswith("| MinRandom MTL-ECOC (50, 81) | 500 | 50.0% | 0.0513 ± 0.0000 | 38.0")
    assert "2.00%" in minimal
    assert "Bits/byte" in header and "Time" not in header


@pytest.mark.parametrize(
    ("cell", "byte_share", "name"),
    [
        ("low-rank-5", 0.0496, "low rank 5%"),
        ("adaptive-1", 0.0139, "adaptive 1.4%"),
        ("code-25-int4", 0.25, "code 25% int4"),
        ("code-0.5", 0.005, "code 0.5%"),
        ("minrandom-50", 0.0334, "the label"),  # bits, not bytes
        ("minimal-13", 0.14, "the label"),  # bits again, though as many per cent of the bytes
        ("chain-12-453", 0.135, "the label"),
        ("code-5", None, "the label"),
        ("int4-corrected", 0.266, "the label"),
    ],
)
def test_a_cell_called_after_its_bytes_has_a_short_name(cell: str, byte_share: float | None, name: str) -> None:
    assert short_name(result(cell, 0, 0.1, LINEAR, 1), "the label", byte_share) == name


def test_what_short_names_stand_for_is_told_once_below_the_table() -> None:
    rows = [weighed("Softmax", 1.0, share=1.0), replace(weighed("a code", 0.05, share=0.9), name="code 5%")]
    text = markdown_table(rows)
    assert "| code 5% |" in text
    assert text.count("a code") == 1 and text.endswith("\nNames: **code 5%**: a code.\n")


def test_labels_of_crowded_points_cover_nothing_and_stay_inside() -> None:
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 5))
    places = [(0.05, 1.0), (0.05, 0.998), (0.05, 0.997), (0.052, 1.0), (0.15, 1.0), (0.15, 0.999), (0.9, 1.0)]
    axis.set(xscale="log", xlim=(0.01, 1), ylim=(0.9, 1.02))
    points = [(x, y, f"a name of number {number}", INK) for number, (x, y) in enumerate(places)]
    place_labels(axis, points, avoid_y=[1.0])
    figure.canvas.draw()
    frame = axis.get_window_extent()
    boxes = [Text.get_window_extent(label) for label in axis.texts]  # without the lines to the points
    assert len(boxes) == len(places)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    plt.close(figure)


def test_committed_reports_are_a_text_with_two_pictures_at_most() -> None:
    folders = [path for path in (Path(__file__).parents[2] / "docs" / "results").iterdir() if path.is_dir()]
    for folder in folders:
        text = (folder / "report.md").read_text(encoding="utf-8")
        pictures = {path.name for path in folder.glob("*.png")}
        assert len(pictures) <= 2 and all(f"({name})" in text for name in pictures)


def test_the_terminal_table_fits_eighty_columns() -> None:
    from rich.console import Console

    console = Console(width=80, file=StringIO())
    console.print(rich_table(summarise(made_up()), "Heads"))
    text = console.file.getvalue()
    assert "…" not in text
    assert "85.0 ± 63.5%" in text


def test_render_writes_report_and_readable_pictures(tmp_path: Path) -> None:
    results = [*made_up("2.4M"), *made_up("10M")]
    report = render(write(results, tmp_path / "results")).markdown
    text = report.read_text()
    assert text.index("## 2.4M tokens") < text.index("## 10M tokens")
    assert {path.name for path in report.parent.glob("*.png")} == {"tradeoff.png", "curves-2.4M.png"}
    for picture in ("tradeoff.png", "curves-2.4M.png"):
        assert f"({picture})" in text
        with Image.open(report.parent / picture) as image:
            assert min(image.size) >= 600
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_a_report_is_not_made_from_nothing_or_from_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no result files"):
        read_results(tmp_path)
    path = write(made_up()[:1], tmp_path) / "0.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(CheckpointError, match="checksum"):
        read_results(tmp_path)
    with pytest.raises(DataError, match=r"all are damaged: 0\.json"):
        render(tmp_path)


def test_a_head_registered_elsewhere_is_drawn_and_listed_like_the_others(tmp_path: Path) -> None:
    other = result("other", 0, 0.3, {**MTL, "head": "other"}, 300)
    path = render(write([*made_up(), other], tmp_path / "results")).markdown
    assert (path.parent / "tradeoff.png").is_file()
    (row,) = [line for line in path.read_text(encoding="utf-8").splitlines() if "| 300 |" in line]
    assert "0.05" in row  # its loss per node


def test_the_number_of_seeds_is_shown_where_it_differs() -> None:
    even, uneven = summarise(made_up()), summarise(made_up()[:-1])
    assert "Seeds" not in markdown_table(even)
    assert "| Minimal ECOC (13, 0) | 1 | 20 |" in markdown_table(uneven)


def weighed(label: str, byte_share: float, **values: float) -> Row:
    estimates = {name: Estimate(value, None) for name, value in values.items()}
    return Row(label, label, label, "peer", "", 1, 10, 0.1, estimates, label == "Softmax", byte_share=byte_share)


def test_what_is_beyond_the_scale_of_the_picture_is_told_below_it() -> None:
    near = [weighed("Near", 0.1, share=0.9, perplexity_ratio=1.1), weighed("Nearer", 0.2, share=0.95)]
    rows = [weighed("Softmax", 1.0, share=1.0), *near]
    (picture,) = frontier(rows)
    assert "Beyond" not in picture.note
    far = weighed("Far", 0.05, share=0.5, perplexity_ratio=6.5)
    half = weighed("Half", 0.05, share=0.8, perplexity_ratio=2.6)
    (picture,) = frontier([*rows, far, half])
    assert picture.note.endswith("Softmax. Beyond the scale: Far (50.0%, 6.5×); Half (2.6×).")


def test_the_legend_of_a_frontier_names_what_is_drawn_alone() -> None:
    near = [weighed("Near", 0.1, share=0.9), weighed("Nearer", 0.2, share=0.95)]
    far = replace(weighed("Far", 0.05, share=0.5), family="linear")
    (picture,) = frontier([weighed("Softmax", 1.0, share=1.0), *near, far])
    assert [key.name for key in picture.keys] == ["Softmax", "no code: low rank, quantised, trimmed"]


def test_the_line_of_a_frontier_goes_through_the_best_of_every_budget() -> None:
    rows = [
        weighed("Worse", 0.0502, share=0.9, perplexity_ratio=1.2),
        weighed("Larger", 0.15, share=0.99, perplexity_ratio=1.0),
        weighed("Better", 0.0501, share=0.95, perplexity_ratio=1.1),
    ]
    assert _best_of_each_budget(rows, "share") == [(0.0501, 0.95), (0.15, 0.99)]
    assert _best_of_each_budget(rows, "perplexity_ratio") == [(0.0501, 1.1), (0.15, 1.0)]


def test_results_without_any_training_have_no_empty_picture():
    found = read_results(Path(__file__).resolve().parents[2] / "results" / "frontier-1")
    baselines = [result for result in found if result.metrics.get(FILE_KEY) is not None]
    drawn = pictures(summarise(baselines), baselines)
    assert drawn and all(picture.panels for picture in drawn)
