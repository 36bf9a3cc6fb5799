"""The numbers of a protocol in sentences, each of them a fact of the tables."""

from __future__ import annotations

from collections.abc import Sequence

from codehead.lab.reports.summary import Estimate, Row, by_setting, setting_title
from codehead.lab.reports.tables import percent

BUDGETS = (0.02, 0.15, 0.55)  # largest share of the Softmax head's bytes, or parameters where bytes are not known
METRICS = {"share": "top-1 accuracy", "f1_share": "BERTScore F1"}


def findings(rows: Sequence[Row]) -> list[str]:
    """One paragraph per setting, one on what cannot be compared, and one on what the intervals allow to say."""
    paragraphs = [_of_setting(setting, group) for setting, group in by_setting(rows).items()]
    whole = [paragraph for paragraph in (*paragraphs, _without_reference(rows), _certainty(rows)) if paragraph]
    return [paragraph.replace(" ± ", "\u00a0±\u00a0") for paragraph in whole]  # no line ends inside a number


def _of_setting(setting: str, rows: Sequence[Row]) -> str:
    """What the best heads within growing budgets reach; a budget that changes nothing is not told."""
    sentences = []
    unit = "bytes" if all(row.byte_share is not None for row in rows) else "parameters"
    told: dict[str, Row] = {}
    for budget in BUDGETS:
        within = [row for row in rows if not row.is_reference and (_share(row, unit) or 1.0) <= budget]
        best = {metric: _best(metric, within) for metric in METRICS if _best(metric, within)}
        new = {metric: row for metric, row in best.items() if row and told.get(metric) is not row}
        told |= new
        for cell in dict.fromkeys(row.cell for row in new.values()):
            metrics = [metric for metric, row in new.items() if row.cell == cell]
            sentences.append(_sentence(budget, unit, metrics, new[metrics[0]], within))
    beginning = f"{setting_title(setting)}: " if setting else ""
    return beginning + " ".join(sentences) if sentences else ""


def _share(row: Row, unit: str) -> float | None:
    return row.byte_share if unit == "bytes" else row.parameter_share


def _best(metric: str, rows: Sequence[Row]) -> Row | None:
    return max((row for row in rows if metric in row.values), key=lambda row: row.values[metric].mean, default=None)


def _sentence(budget: float, unit: str, metrics: Sequence[str], best: Row, within: Sequence[Row]) -> str:
    """`Of the 3 heads with at most 15% of Softmax’s bytes, … keeps most: 82.1 ± 8.7% of its BERTScore F1.`"""
    reached = " and ".join(
        f"{percent(best.values[metric])} of {'its' if number else 'Softmax’s'} {METRICS[metric]}"
        for number, metric in enumerate(metrics)
    )
    size = percent(_share(best, unit))
    if len(within) == 1:
        return f"With {size} of Softmax’s {unit}, {best.name} reaches {reached}."
    rivals = {
        row.name: None
        for metric in metrics
        for row in within
        if row is not best and metric in row.values and _overlap(row.values[metric], best.values[metric])
    }
    doubt = f"; the interval of {_listed(list(rivals))} overlaps" if rivals else ""
    return (
        f"Of the {len(within)} heads with at most {budget:.0%} of Softmax’s {unit}, {best.name} ({size}) keeps "
        f"most: {reached}{doubt}."
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} others"


def _overlap(one: Estimate, other: Estimate) -> bool:
    if one.half_width is None or other.half_width is None:
        return False
    return abs(one.mean - other.mean) <= one.half_width + other.half_width


def _without_reference(rows: Sequence[Row]) -> str:
    """Which rows have no shares of the reference, and for want of which of its seeds."""
    told = [
        f"{setting_title(row.setting)}: {row.name} (seed {seeds})" if row.setting else f"{row.name} (seed {seeds})"
        for row in rows
        if (seeds := ", ".join(map(str, row.unmatched)))
    ]
    if not told:
        return ""
    return f"Not compared with the reference, which has no result of the same seed: {'; '.join(told)}."


def _certainty(rows: Sequence[Row]) -> str:
    seeds = {row.seeds for row in rows}
    if seeds == {1}:
        return "There is one seed, so no interval: small differences between heads may be chance."
    single = "" if 1 not in seeds else " Rows of one seed have none: small differences there may be chance."
    return f"± is the half width of the 95% t-interval over seeds.{single}"
