"""A folder of results → a page that stands alone, and Markdown with pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from codehead.lab.reports.drawing import (
    EDGE,
    GRID,
    INK,
    LABEL,
    PALETTE,
    PAPER,
    STYLE,
    TICK,
    Key,
    Panel,
    Picture,
    draw_panel,
    pyplot,
    save_png,
)
from codehead.lab.reports.evidence import Damaged
from codehead.lab.reports.report import Report, Sample, compose
from codehead.lab.reports.tables import markdown


@dataclass(frozen=True)
class Rendered:
    """What was written, and the files that were left out of it."""

    page: Path  # report.html, which needs no other file
    markdown: Path  # report.md, with two pictures beside it
    damaged: tuple[Damaged, ...]


def render(results_folder: str | Path, out: str | Path | None = None) -> Rendered:
    """Write `report.html`, `report.md` and its pictures into `out` (default: `report` beside the results).

    Damaged files are named in the report and left out of every number. Raises DataError if no file is whole or if they
    are of several protocols.
    """
    folder = Path(out) if out is not None else Path(results_folder).parent / "report"
    report = compose(results_folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Rendered(write_page(report, folder), write_markdown(report, folder), report.damaged)


# A report → one HTML file: style and pictures inside, no script, nothing from the network.


PAGE = "report.html"
TEMPLATE = "page.html"


def write_page(report: Report, folder: Path) -> Path:
    """Write `report.html`; the same results give the same bytes."""
    path = folder / PAGE
    path.write_text(page(report), encoding="utf-8", newline="\n")
    return path


def page(report: Report) -> str:
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("codehead.lab.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = [_figure(picture) for picture in report.pictures]
    return environment.get_template(TEMPLATE).render(report=report, figures=figures)


def _figure(picture: Picture) -> dict[str, Any]:
    """The parts of a picture; its SVGs are the only texts that the template does not escape."""
    from markupsafe import Markup

    panels = [
        {"title": panel.title, "svg": Markup(inline_svg(panel, f"{picture.name}-{number}"))}
        for number, panel in enumerate(picture.panels)
    ]
    return {
        "picture": picture,
        "panels": panels,
        "legend": [(Markup(sign), name) for sign, name in legend(picture.keys, picture.name)],
    }


# A panel → an SVG that stands inside a page and takes its neutral colours from the page's theme.


THEME = {
    INK: "ink",
    LABEL: "label",
    TICK: "tick",
    EDGE: "edge",
    GRID: "grid",
    PAPER: "paper",
    **{colour: f"series-{number}" for number, colour in enumerate(PALETTE)},
}  # colour as drawn → variable of the style sheet
COLOUR = re.compile("|".join(THEME), re.IGNORECASE)
NOT_FOR_PAGES = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<defs>\s*</defs>", re.DOTALL)
IDENTIFIER = re.compile(r'(\bid="|href="#|url\(#)')
METADATA = {"Date": None, "Creator": None}  # neither the day nor the version is the report's
SALT = "codehead"  # makes the names that matplotlib gives to shapes the same every time


def inline_svg(panel: Panel, prefix: str) -> str:
    """The panel as an `<svg>` element; `prefix` keeps its names apart from those of other pictures of the page."""
    plt = pyplot()
    with plt.rc_context({**STYLE, "svg.hashsalt": SALT, "svg.fonttype": "path"}):
        figure, axis = plt.subplots(figsize=panel.size, layout="constrained")
        draw_panel(axis, panel, titled=False)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=METADATA)
        plt.close(figure)
    return _for_page(text.getvalue(), panel.alt, prefix)


def legend(keys: Sequence[Key], prefix: str) -> list[tuple[str, str]]:
    """A small `<svg>` element and the name of every entry."""
    return [(_for_page(_swatch(key), "", f"{prefix}-key-{number}"), key.name) for number, key in enumerate(keys)]


@cache
def _swatch(key: Key) -> str:
    """Line and marker of a legend entry, as matplotlib writes them."""
    plt = pyplot()
    with plt.rc_context({**STYLE, "svg.hashsalt": SALT}):
        figure = plt.figure(figsize=(0.36, 0.18))
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        axis.set(xlim=(0, 2), ylim=(-1, 1))
        axis.plot([0.1, 1.9], [0, 0], color=key.colour, linestyle=key.line or "none", linewidth=1.8)
        axis.plot([1], [0], color=key.colour, marker=key.marker, markersize=7.5, markeredgecolor=PAPER)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=METADATA)
        plt.close(figure)
    return text.getvalue()


def _for_page(svg: str, alt: str, prefix: str) -> str:
    """Without prolog, metadata, fixed size and namespaces, which HTML does not need."""
    svg = NOT_FOR_PAGES.sub("", svg[svg.index("<svg") :])
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    described = f'role="img" aria-label="{escape(alt)}"' if alt else 'aria-hidden="true"'
    body = IDENTIFIER.sub(lambda match: f"{match[0]}{prefix}-", body.replace("xlink:href", "href"))
    body = COLOUR.sub(lambda match: f"var(--{THEME[match[0].upper()]})", body)
    return f"<svg {box[0]} {described}>{body.rstrip()}"


# A report → Markdown with PNG pictures beside it, for places that show no HTML.


REPORT = "report.md"
ROOM = 2  # pictures; the page has all of them
FIRST = ("frontier", "width", "length", "tradeoff-f1", "tradeoff", "curves")  # names, or beginnings before a setting's
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


def write_markdown(report: Report, folder: Path) -> Path:
    """Write `report.md` and its pictures, of which it has two at most."""
    pictures = chosen(report.pictures)
    for picture in pictures:
        save_png(picture, folder / f"{picture.name}.png")
    parts = [*_beginning(report), *_numbers(report, pictures), *_evidence(report)]
    path = folder / REPORT
    path.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8", newline="\n")
    return path


def chosen(pictures: Sequence[Picture]) -> list[Picture]:
    """Those that tell most, the first of FIRST."""

    def place(picture: Picture) -> int:
        known = not picture.name.endswith("-bytes")  # the same once more
        names = (number for number, name in enumerate(FIRST) if f"{picture.name}-".startswith(f"{name}-") and known)
        return next(names, len(FIRST))

    return sorted(pictures, key=place)[:ROOM]


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _beginning(report: Report) -> list[str]:
    parts = [f"# {report.title}\n", f"{report.subtitle}.\n"]
    if report.damaged:
        parts.append("> **Damaged result files, left out of every number:**\n>")
        parts.append("\n".join(f"> - `{file.name}` {plain(file.reason)}" for file in report.damaged) + "\n")
    if report.description:
        parts.append(f"{report.description}\n")
    parts += [f"{plain(paragraph)}\n" for paragraph in report.findings]
    parts.append("\n".join(f"- **{term}**: {meaning}" for term, meaning in report.terms.items()) + "\n")
    return parts


def _numbers(report: Report, pictures: Sequence[Picture]) -> list[str]:
    parts = []
    if report.comparisons:
        parts.append(f"## Beside the paper\n\n[{report.source}]({report.source_address})\n")
    for table in report.comparisons:
        parts += [f"{table.caption}\n", markdown(table, with_groups=True)]
    for table in report.tables:
        parts += [f"## {table.caption}\n", markdown(table)]
    for picture in pictures:
        parts.append(
            f"## {picture.title}\n\n![{_alt(p.alt for p in picture.panels)}]({picture.name}.png)\n\n{picture.note}\n"
        )
    return parts


def _evidence(report: Report) -> list[str]:
    parts = ["## Answers\n"] if report.samples else []
    parts += [_sample(sample) for sample in report.samples]
    parts.append("## Where the numbers come from\n")
    parts.append("\n".join(f"- {heading}: {'; '.join(map(plain, lines))}" for heading, lines in report.origin) + "\n")
    return parts


def _sample(sample: Sample) -> str:
    where = f"{sample.setting}: " if sample.setting else ""
    context = f" — {plain(sample.context)}" if sample.context else ""
    answers = "\n".join(f"- **{label}**: {plain(text)}" for label, text in sample.answers)
    return f"> {where}{plain(sample.prompt)}{context}\n\nReference: {plain(sample.reference)}\n\n{answers}\n"


def _alt(texts: Iterable[str]) -> str:
    return plain("; ".join(texts))
