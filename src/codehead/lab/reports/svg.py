"""A panel → an SVG that stands inside a page and takes its neutral colours from the page's theme."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from html import escape
from io import StringIO

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
    draw_panel,
    pyplot,
)

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
