"""A report → Markdown with PNG pictures beside it, for places that show no HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from codehead.lab.reports.answers import Sample
from codehead.lab.reports.drawing import save_png
from codehead.lab.reports.report import Report
from codehead.lab.reports.tables import markdown

REPORT = "report.md"
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


def write_markdown(report: Report, folder: Path, closing: str = "") -> Path:
    """Write `report.md` and its pictures; `closing` is Markdown for the end."""
    for picture in report.pictures:
        save_png(picture, folder / f"{picture.name}.png")
    parts = [*_beginning(report), *_numbers(report), *_evidence(report)]
    if closing:
        parts.append(closing)
    path = folder / REPORT
    path.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8", newline="\n")
    return path


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


def _numbers(report: Report) -> list[str]:
    parts = []
    if report.comparisons:
        parts.append(f"## Beside the paper\n\n[{report.source}]({report.source_address})\n")
    for table in report.comparisons:
        parts += [f"{table.caption}\n", markdown(table, with_groups=True)]
    for table in report.tables:
        parts += [f"## {table.caption}\n", markdown(table)]
    for picture in report.pictures:
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
