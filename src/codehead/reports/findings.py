"""The numbers of a protocol in sentences, each of them a fact of the tables."""

from __future__ import annotations

from collections.abc import Sequence

from codehead.reports.summary import Estimate, Row, by_setting, setting_title
from codehead.reports.tables import percent

BUDGETS = (0.02, 0.15, 0.55)  # largest share of the Softmax head's parameters
METRICS = {"share": "top-1 accuracy", "f1_share": "BERTScore F1"}


def findings(rows: Sequence[Row]) -> list[str]:
    """One paragraph per setting, and one on what the intervals allow to say."""
    paragraphs = [_of_setting(setting, group) for setting, group in by_setting(rows).items()]
    return [paragraph for paragraph in (*paragraphs, _certainty(rows)) if paragraph]


def _of_setting(setting: str, rows: Sequence[Row]) -> str:
    sentences = [sentence for metric in METRICS for sentence in _of_metric(metric, rows)]
    if not sentences:
        return ""
    beginning = f"{setting_title(setting)}: " if setting else ""
    return beginning + " ".join(sentences)


def _of_metric(metric: str, rows: Sequence[Row]) -> list[str]:
    """The best head of every budget of parameters; a budget that changes nothing is not told."""
    sentences: list[str] = []
    told = None
    for budget in BUDGETS:
        within = [
            row
            for row in rows
            if not row.is_reference and metric in row.values and (row.parameter_share or 1.0) <= budget
        ]
        best = max(within, key=lambda row: row.values[metric].mean, default=None)
        if best is None or best is told:
            continue
        told = best
        sentences.append(
            f"Of the {len(within)} heads with at most {budget:.0%} of the Softmax head's parameters, {best.label} has "
            f"the highest {METRICS[metric]}: {percent(best.values[metric])} of Softmax with "
            f"{percent(best.parameter_share)} of its parameters{_rival(best, within, metric)}."
            if len(within) > 1
            else f"The one head with at most {budget:.0%} of the Softmax head's parameters, {best.label}, reaches "
            f"{percent(best.values[metric])} of the Softmax's {METRICS[metric]} with "
            f"{percent(best.parameter_share)} of its parameters."
        )
    return sentences


def _rival(best: Row, rows: Sequence[Row], metric: str) -> str:
    """Says so if the interval of another head of the budget overlaps that of the best."""
    others = [row for row in rows if row is not best and _overlap(row.values[metric], best.values[metric])]
    if not others:
        return ""
    return (
        f" (the interval of {others[0].label} overlaps)"
        if len(others) == 1
        else (f" (the intervals of {len(others)} others overlap)")
    )


def _overlap(one: Estimate, other: Estimate) -> bool:
    if one.half_width is None or other.half_width is None:
        return False
    return abs(one.mean - other.mean) <= one.half_width + other.half_width


def _certainty(rows: Sequence[Row]) -> str:
    seeds = {row.seeds for row in rows}
    if seeds == {1}:
        return "There is one seed, so no interval: small differences between heads may be chance."
    single = "" if 1 not in seeds else " Rows of one seed have none: small differences there may be chance."
    return f"± is the half width of the 95% t-interval over seeds.{single}"
