"""Tables of docs/estimator.md, between their marks, and its picture, from the result file of benchmarks/estimator.py.

python benchmarks/estimator_report.py --result results/benchmarks/estimator.json --docs docs/estimator.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from estimator_summary import DEFAULT, OURS
from pages import filled
from scipy.stats import rankdata, studentized_range, t

from codehead.lab.reports.drawing import EDGE, INK, PALETTE, STYLE, pyplot
from codehead.lab.result import Result

LEVEL = 0.05


class Measured:
    """The accuracies and times of a result file."""

    def __init__(self, result: Result) -> None:
        self.sets: dict[str, Any] = result.metrics["data_sets"]
        self.speed: list[dict[str, Any]] = result.metrics["speed"]
        self.ranked = [name for name, found in self.sets.items() if "probabilities" in found]
        self.kinds = list(next(iter(self.sets.values()))["paired"])

    def accuracy(self, name: str, method: tuple[str, str]) -> float:
        """The mean over runs of a method, (coding or baseline, decoder or "own")."""
        code, decoder = method
        return float(self.sets[name]["methods"][code]["accuracy"][decoder])

    def combinations(self) -> list[tuple[str, str]]:
        """Every coding with every decoding, and the baselines, on the data sets that have them all."""
        methods = self.sets[self.ranked[0]]["methods"]
        return [(code, decoder) for code, found in methods.items() for decoder in found["accuracy"]]

    def mean_ranks(self, methods: list[tuple[str, str]]) -> np.ndarray:
        """The mean over the ranked data sets of each method's rank by mean accuracy, 1 the best."""
        table = np.array([[self.accuracy(name, method) for method in methods] for name in self.ranked])
        return rankdata(-table.round(12), axis=1).mean(axis=0)


def critical_difference(methods: int, data_sets: int) -> float:
    """Nemenyi's: mean ranks that differ by more differ at the level 0.05 (Demšar 2006)."""
    quantile = studentized_range.ppf(1 - LEVEL, methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * data_sets)))


def interval(differences: np.ndarray) -> float:
    """Half the width of the 95% interval of Dietterich's 5 × 2 test (1998) for differences (10,), fold by fold."""
    pairs = differences.reshape(5, 2)
    return float(t.ppf(1 - LEVEL / 2, 5) * np.sqrt(pairs.var(axis=1, ddof=1).mean()))


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose first column is text."""
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(value: float) -> str:
    """A share of 1 in per cent."""
    return f"{100 * value:.1f}"


def equal_length(found: Measured) -> str:
    """Ours with its defaults against scikit-learn's with as many columns, by data set."""
    header = ["data set", "classes", "columns"]
    for kind in found.kinds:
        header += [f"{kind}: scikit-learn", "ours", "difference"]
    rows = []
    for name, shape in found.sets.items():
        columns = shape["methods"][OURS]["columns"]
        row = [name, f"{shape['classes']:,}", str(columns)]
        for kind in found.kinds:
            ours, theirs = (np.array(shape["paired"][kind][who]) for who in ("ours", "theirs"))
            gain = ours - theirs
            row += [percent(theirs.mean()), percent(ours.mean())]
            row += [f"{100 * gain.mean():+.1f} ± {100 * interval(gain):.1f}"]
        rows.append(row)
    return markdown(header, rows)


def combinations(found: Measured) -> str:
    """Mean accuracy and mean rank of every coding with every decoding."""
    methods = found.combinations()
    ranks = dict(zip(methods, found.mean_ranks(methods), strict=True))
    means = {m: np.mean([found.accuracy(name, m) for name in found.ranked]) for m in methods}
    codes = list(dict.fromkeys(code for code, decoder in methods if decoder != "own"))
    decoders = list(dict.fromkeys(decoder for _, decoder in methods if decoder != "own"))
    best = min(ranks, key=lambda method: ranks[method])

    def cell(method: tuple[str, str]) -> str:
        text = f"{percent(means[method])} ({ranks[method]:.0f})"
        return f"**{text}**" if method == best else text

    rows = [[f"`{code}`", *(cell((code, decoder)) for decoder in decoders)] for code in codes]
    names = [decoder.replace("_", " ") for decoder in decoders]
    table = markdown(["coding", *names], rows)
    baselines = "; ".join(f"{code}: {cell((code, own))}" for code, own in methods if own == "own")
    gap = critical_difference(len(methods), len(found.ranked))
    return (
        f"{table}\n\n{baselines}. {len(methods)} methods on {len(found.ranked)} data sets: mean ranks that differ by "
        f"less than {gap:.0f} do not differ significantly (Nemenyi, 5%)."
    )


def many_classes(found: Measured) -> str:
    """Accuracy on the data sets with too many classes to train all codings."""
    names = [name for name in found.sets if name not in found.ranked]
    rows = []
    for code in found.sets[names[0]]["methods"]:
        row = [code]
        for name in names:
            part = found.sets[name]["methods"][code]
            row += [f"{part['columns']:,}", percent(part["accuracy"][_usual(part)])]
        rows.append(row)
    return markdown(["method", *(part for name in names for part in (f"{name}: columns", "accuracy"))], rows)


def _usual(part: dict[str, Any]) -> str:
    return DEFAULT if DEFAULT in part["accuracy"] else "own"


def times(found: Measured) -> str:
    """Processor seconds as multiples of scikit-learn's OutputCodeClassifier on the same fold."""

    def ratio(name: str, code: str, what: str) -> str:
        part = found.sets[name]["methods"].get(code)
        return f"{part[what]:.2f}" if part else "–"

    shown = ["digits", "letter-like", "clusters-100", "clusters-1000"]
    header = ["method", *(f"{name}: {what}" for name in shown for what in ("fit", "predict"))]
    codes = found.sets[found.ranked[0]]["methods"]
    rows = [[code, *(ratio(name, code, what) for name in shown for what in ("fit", "predict"))] for code in codes]
    return markdown(header, rows)


def probabilities(found: Measured) -> str:
    """Log loss and calibration error, means over data sets and folds."""
    header = ["probabilities of"]
    for kind in found.kinds:
        header += [f"{kind}: log loss", "calibration error", "accuracy"]

    def mean(kind: str, method: str, what: str) -> float:
        return float(np.mean([found.sets[name]["probabilities"][kind][method][what] for name in found.ranked]))

    rows = []
    for method in found.sets[found.ranked[0]]["probabilities"][found.kinds[0]]:
        row = [method]
        for kind in found.kinds:
            row += [f"{mean(kind, method, what):.3f}" for what in ("log_loss", "calibration_error")]
            row += [percent(mean(kind, method, "accuracy"))]
        rows.append(row)
    return markdown(header, rows)


def speed(found: Measured) -> str:
    """Seconds of predict at 1,000 classes."""
    rows = [
        [
            f"{each['columns']:,}",
            f"{each['batch']:,}",
            f"{1000 * each['theirs']:.1f}",
            f"{1000 * each['ours']:.2f}",
            f"{each['theirs'] / each['ours']:.1f}×",
        ]
        for each in found.speed
    ]
    return markdown(["columns", "samples at once", "scikit-learn, ms", "ours, ms", "faster"], rows)


def picture(found: Measured, path: Path) -> None:
    """The critical-difference diagram of all codings with the default decoder, and their mean accuracies."""
    methods = [(c, d) for c, d in found.combinations() if d in (DEFAULT, "own")]
    ranks = found.mean_ranks(methods)
    means = [np.mean([found.accuracy(name, m) for name in found.ranked]) for m in methods]
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, (above, below) = plt.subplots(2, 1, figsize=(8.4, 8.2), layout="constrained", height_ratios=(1.15, 1))
        draw_ranks(above, [code for code, _ in methods], ranks, critical_difference(len(methods), len(found.ranked)))
        draw_bars(below, [code for code, _ in methods], 100 * np.array(means), ranks)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Software": None})
        plt.close(figure)


def colour(name: str) -> str:
    """scikit-learn's methods in one colour, ours in another."""
    return PALETTE[1] if name.startswith("sklearn") else PALETTE[0]


def draw_ranks(axis: Any, names: list[str], ranks: np.ndarray, gap: float) -> None:
    """Mean ranks on a line, the best at the left; bars join ranks that do not differ significantly."""
    order, count = np.argsort(ranks), len(ranks)
    half = (count + 1) // 2
    low, high = np.floor(ranks.min()), np.ceil(ranks.max())
    axis.set(xlim=(low - 2.6, high + 2.6), ylim=(-half - 1.6, 2.2), title="Mean rank by accuracy, likelihood decoding")
    axis.set_axis_off()
    axis.plot([low, high], [0, 0], color=INK, lw=1.2)
    for tick in np.arange(low, high + 1):
        axis.plot([tick, tick], [0, 0.15], color=INK, lw=1)
        axis.text(tick, 0.3, f"{tick:.0f}", ha="center", va="bottom", fontsize=9)
    axis.plot([low, low + gap], [1.35, 1.35], color=INK, lw=2.5)
    axis.text(low + gap / 2, 1.5, f"critical difference {gap:.1f}", ha="center", va="bottom", fontsize=9)
    cliques = joined(np.sort(ranks), gap)
    for number, (first, last) in enumerate(cliques):
        height = -0.3 - 0.28 * number
        axis.plot([first - 0.04, last + 0.04], [height, height], color=EDGE, lw=4, solid_capstyle="round")
    for place, index in enumerate(order):
        left = place < half
        row = place if left else count - 1 - place
        height, side = -0.9 - 0.28 * len(cliques) - 0.85 * row, low - 0.2 if left else high + 0.2
        axis.plot([ranks[index], ranks[index], side], [0, height, height], color=colour(names[index]), lw=1.1)
        text = f"{names[index]}  {ranks[index]:.1f}" if left else f"{ranks[index]:.1f}  {names[index]}"
        axis.text(side, height, f" {text} ", ha="right" if left else "left", va="center", color=colour(names[index]))


def joined(ranks: np.ndarray, gap: float) -> list[tuple[float, float]]:
    """The longest stretches of sorted ranks within one critical difference."""
    stretches = [(rank, ranks[ranks <= rank + gap].max()) for rank in ranks]
    return [s for i, s in enumerate(stretches) if s[1] > s[0] and (i == 0 or s[1] > stretches[i - 1][1])]


def draw_bars(axis: Any, names: list[str], means: np.ndarray, ranks: np.ndarray) -> None:
    """Mean accuracy of every method, in the order of the ranks."""
    order = np.argsort(ranks)[::-1]
    axis.barh(range(len(order)), means[order], color=[colour(names[i]) for i in order], height=0.7)
    axis.set_yticks(range(len(order)), [names[i] for i in order])
    axis.set(title="Mean accuracy", xlabel="per cent of the test samples", xlim=(min(means) - 8, max(means) + 4))
    axis.grid(False, axis="y")
    for row, index in enumerate(order):
        axis.text(means[index] + 0.3, row, f"{means[index]:.1f}", va="center", fontsize=9)


TABLES: dict[str, Callable[[Measured], str]] = {
    "equal length": equal_length,
    "codings and decodings": combinations,
    "many classes": many_classes,
    "times": times,
    "probabilities": probabilities,
    "speed": speed,
}


def main() -> None:
    """Parse the command line, fill the page, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--docs", type=Path, required=True)
    options = parser.parse_args()
    found = Measured(Result.read(options.result))
    page = options.docs.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        page = filled(page, name, table(found))
    options.docs.write_text(page, encoding="utf-8")
    picture(found, options.docs.with_suffix("") / "ranks.png")


if __name__ == "__main__":
    main()
