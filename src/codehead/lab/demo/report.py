"""The demo's report: the table of Protocol 1, pictures, one answer of every head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from codehead.lab.reports.evidence import read_results
from codehead.lab.reports.markdown import write_markdown
from codehead.lab.reports.naming import label_of
from codehead.lab.reports.report import compose
from codehead.lab.reports.summary import summarise
from codehead.lab.reports.tables import rich_table
from codehead.lab.result import Result

if TYPE_CHECKING:
    from rich.table import Table

PICTURES = ("tradeoff", "curves")  # the demo trains for seconds: more pictures would tell no more


def render_demo(out: str | Path) -> Path:
    """Write `report.md` and its pictures into `out`, from the result files there."""
    out = Path(out)
    report = compose(out / "results", _times(out))
    few = tuple(picture for picture in report.pictures if picture.name in PICTURES)
    return write_markdown(replace(report, pictures=few), out, _closing(out))


def tables(out: str | Path) -> list[Table]:
    """The table of Protocol 1 and the answers, for a terminal."""
    from rich import box
    from rich.table import Table

    out = Path(out)
    generation = Result.read(out / "generation.json")
    answers = Table(title=generation.metrics["question"].split("\n")[0], box=box.SIMPLE_HEAD, pad_edge=False)
    answers.title_justify, answers.title_style = "left", "bold"
    answers.add_column("Head", no_wrap=True)
    answers.add_column("Answer")
    answers.add_row("(documentation)", generation.metrics["expected"], style="dim")
    for label, answer in _by_label(out, "answers").items():
        answers.add_row(label, answer)
    rows = summarise(read_results(out / "results"))
    return [rich_table(rows, "Protocol 1 on a small model", _times(out)), answers]


def _times(out: Path) -> dict[str, dict[str, str]]:
    return {"Time": {label: f"{float(value):.2f} s" for label, value in _by_label(out, "seconds").items()}}


def _by_label(out: Path, metric: str) -> dict[str, str]:
    """A metric of `generation.json` under the labels of the table."""
    values = Result.read(out / "generation.json").metrics[metric]
    return {label_of(result): values[result.config["cell"]] for result in _ordered(out)}


def _ordered(out: Path) -> list[Result]:
    return sorted(
        read_results(out / "results"),
        key=lambda result: (
            result.config["cell"] != result.config["reference"],
            result.metrics["size"]["head_parameters"],
        ),
    )


def _closing(out: Path) -> str:
    generation = Result.read(out / "generation.json")
    config = generation.config
    answers = "\n".join(
        f"- **{label}**: {answer or '(nothing)'}" for label, answer in _by_label(out, "answers").items()
    )
    return (
        f"Time is that of generating {config['new_tokens']} new tokens after each of {config['prompts']} questions "
        f"of the test split, one at a time, the heads taking turns (median of {config['repeats']} repeats). In a model "
        "this small the head is a minor part of it.\n\n"
        f"## One answer\n\n> {generation.metrics['question'].replace(chr(10), ' ')}\n\n"
        f"The documentation says: {generation.metrics['expected']}\n\n{answers}\n"
    )
