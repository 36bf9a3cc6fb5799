"""A report → one HTML file: style and pictures inside, no script, nothing from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codehead.lab.reports.drawing import Picture
from codehead.lab.reports.report import Report
from codehead.lab.reports.svg import inline_svg, legend

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
