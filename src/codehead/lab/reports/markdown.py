"""A report → Markdown with PNG pictures beside it, for places that show no HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from codehead.lab.reports.answers import Sample
from codehead.lab.reports.drawing import Picture, save_png
from codehead.lab.reports.report import Report
from codehead.lab.reports.tables import markdown

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
