"""Tables and pictures of docs/results/frontier-real-*, and README's table, from the result files of frontier_real.py.

python benchmarks/frontier_real_report.py
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from codehead.lab.reports.drawing import DPI, PALETTE, STYLE, pyplot
from codehead.lab.result import Result

ROOT = Path(__file__).parents[1]
RESULTS, PAGES = ROOT / "results/benchmarks", ROOT / "docs/results"
SMOLLM2, GEMMA = "frontier-real-1", "frontier-real-2"
MIXTURE, OUTSIDE = ("dolly", "books", "wikitext"), ("alpaca", "stories", "german", "python")
ASIDE = "code, other training text"
"""Shown only in the comparison of codes with and without the model's own text."""
KINDS = {
    "code": "code", "int": "quantised", "adaptive": "adaptive softmax", "trained_low_rank": "low rank, trained",
    "low_rank": "low rank", "trimmed": "trimmed vocabulary", "mixture_code": ASIDE,
}  # fmt: skip
"""Beginnings of keys, and their meanings."""
BARS = {0.05: (0.96, 1.20), 0.1: (0.975, 1.08), 0.25: (0.993, 1.02)}
"""Targets set beforehand: share of top-1 and perplexity ratio."""
IN_README = ("int4-corrected", "code-0.25", "code-0.1", "code-0.05", "code-0.02")
UNTRAINED = ("int8", "int4")
"""Rounded without any text."""
COMPARED = (*IN_README, "int3-corrected")
"""By the frequency of tokens."""


class Head:
    """The measurements of one head."""

    def __init__(self, key: str, found: dict[str, Any]) -> None:
        self.key, self.share, self.sets, self.how = key, float(found["byte_share"]), found["sets"], found
        kind, *rest = key.split("-")
        self.kind = next(word for start, word in KINDS.items() if key.startswith(start))
        words = kind if self.kind == "quantised" else f"{self.kind} {100 * self.share:.0f}%"
        self.name = " ".join([words, *("error-corrected" for how in rest if how == "corrected")])
        self.is_exact = kind == "code" or "corrected" in rest or kind not in ("int4", "int3", "int2")

    def pooled(self, names: Iterable[str]) -> dict[str, float]:
        """The figures over some sets together."""
        return figures([self.sets[name]["all"] for name in names])

    def octave(self, number: int) -> dict[str, float]:
        """The figures of one octave's tokens, over the sets of the mixture."""
        return figures([self.sets[name]["by_octave"].get(str(number)) for name in MIXTURE])


def figures(sums: list[dict[str, Any] | None]) -> dict[str, float]:
    """Shares, means and the perplexity ratio of sums; infinite where a token became impossible."""
    parts = [some for some in sums if some]

    def total(name: str) -> float:
        return sum(math.inf if part[name] is None else part[name] for part in parts)

    count = total("positions")
    if not count:
        return {"positions": 0.0}
    found = {"positions": count, "kl": total("kl") / count, "lost": (total("new_nll") - total("old_nll")) / count}
    found["top1"] = total("new_top1") / max(total("old_top1"), 1)
    found |= {name: total(name) / count for name in parts[0] if name.startswith("best_")}
    return found | {"ratio": math.exp(found["lost"]), "old_top1": total("old_top1") / count}


def number(value: float, form: str) -> str:
    """A figure as text."""
    return "∞" if math.isinf(value) else format(value, form)


def markdown(header: list[str], rows: Iterable[list[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def overall(heads: list[Head]) -> str:
    """Every head on the held-out text of the mixture and on other text."""
    rows = []
    for head in heads:
        own, other = head.pooled(MIXTURE), head.pooled(OUTSIDE)
        rows.append(
            [
                head.name, f"{head.share:.1%}", f"{own['top1']:.1%}", f"{number(own['ratio'], '.3f')} ×",
                number(own["kl"], ".3f"), f"{own['best_1']:.1%}", f"{own['best_32']:.1%}", f"{own['best_512']:.2%}",
                f"{other['top1']:.1%}", f"{number(other['ratio'], '.3f')} ×",
            ]
        )  # fmt: skip
    header = ["head", "bytes", "of top-1", "perplexity", "KL, nats", "same choice", "in best 32", "in best 512"]
    return markdown([*header, "other text: of top-1", "other text: perplexity"], rows)


def own_text(heads: list[Head]) -> str:
    """Codes that learnt from the mixture alone, and those that learnt from the model's own text too."""
    rows, by_key = [], {head.key: head for head in heads}
    for key, head in by_key.items():
        if f"mixture_{key}" in by_key:
            both = by_key[f"mixture_{key}"], head
            pairs = [[one.pooled(texts) for one in both] for texts in (MIXTURE, OUTSIDE)]
            cells = [(f"{one['top1']:.1%}", f"{one['ratio']:.3f} ×") for pair in pairs for one in pair]
            steps = " and ".join(f"{count:,}" for count in dict.fromkeys(one.how["distil"]["steps"] for one in both))
            rows.append([head.name, steps, *(cell for pair in cells for cell in pair)])
    places = ("mixture, alone", "mixture, with own text", "other text, alone", "other text, with own text")
    header = [f"{place}: {figure}" for place in places for figure in ("of top-1", "perplexity")]
    return markdown(["head", "steps", *header], rows)


def domains(heads: list[Head]) -> str:
    """Nats lost per token on every set."""
    names = [*MIXTURE, *OUTSIDE]
    rows = [[head.name, *(number(head.pooled([name])["lost"], ".3f") for name in names)] for head in heads]
    return markdown(["head", *names], rows)


def octaves(heads: list[Head]) -> str:
    """Nats lost per token by the frequency of the token."""
    numbers = sorted({int(octave) for head in heads for name in MIXTURE for octave in head.sets[name]["by_octave"]})
    counts = {octave: heads[0].octave(octave)["positions"] for octave in numbers}
    header = ["rank of the token", "positions", *(head.name for head in heads)]
    return markdown(
        header,
        [
            [
                f"{2**o:,} to {2 ** (o + 1) - 1:,}",
                f"{counts[o]:,.0f}",
                *(number(h.octave(o)["lost"], ".3f") for h in heads),
            ]
            for o in numbers
        ],
    )


def bars(heads: list[Head]) -> str:
    """The targets and the results."""
    rows = []
    for share, (top1, ratio) in BARS.items():
        found = next((head for head in heads if head.key == f"code-{share}"), None)
        own = None if found is None else found.pooled(MIXTURE)
        reached = ["not measured"] * 2 if own is None else [f"{own['top1']:.2%}", f"{own['ratio']:.4f} ×"]
        rows.append([f"{share:.0%}", f"{top1:.1%}", reached[0], f"{ratio:.2f} ×", reached[1]])
    return markdown(["bytes", "of top-1, aim", "of top-1, reached", "perplexity, aim", "perplexity, reached"], rows)


def learning(heads: list[Head]) -> str:
    """The composition of each code and how long it was trained."""
    rows = []
    for head in heads:
        if head.kind == "code":
            decision, options, seconds = (head.how[key] for key in ("decision", "distil", "processor_seconds"))
            layer = f"{decision['bits']} + {decision['extra_bits']} for {decision['extra_bit_tokens']:,}"
            extra = [
                f"{decision['dense_rows']:,}",
                decision["weights"],
                f"{options['tokens']:,}",
                f"{options['own_text']:.0%}",
                f"{options['steps']:,} × {options['batch_tokens']}",
            ]
            times = ["–" if spent is None else f"{spent:.0f} s" for spent in (seconds["start"], seconds["learning"])]
            rows.append([head.name, layer, *extra, *times])
    header = [
        "head",
        "bits",
        "dense rows",
        "rows",
        "learnt from",
        "of it own text",
        "steps × positions",
        "start, processor time",
        "learning, processor time",
    ]
    return markdown(header, rows)


def kept(head: Head) -> list[str]:
    """The share of top-1 accuracy and the perplexity ratio, on the mixture and on other text."""
    sums = [head.pooled(names) for names in (MIXTURE, OUTSIDE)]
    return [text for one in sums for text in (f"{one['top1']:.1%}", f"{number(one['ratio'], '.2f')} ×")]


KEPT = ["Top-1 kept", "Perplexity", "Top-1 kept, other text", "Perplexity, other text"]


def readme(heads: list[Head]) -> str:
    """The few rows that README shows."""
    chosen = sorted((head for head in heads if head.key in IN_README), key=lambda head: -head.share)
    return markdown(["Head", "Bytes", *KEPT], [[head.name, f"{head.share:.1%}", *kept(head)] for head in chosen])


def picking(heads: list[Head]) -> str:
    """The size and accuracy of every choice."""
    needs = ["text, training" if "distil" in h.how else "nothing" if h.key in UNTRAINED else "text" for h in heads]
    rows = [[h.name, f"{h.share:.1%}", *kept(h), need] for h, need in zip(heads, needs, strict=True)]
    return markdown(["Head", "Bytes", *KEPT, "Needs"], rows)


def frontier(heads: list[Head], path: Path) -> None:
    """Divergence from the old head against bytes, on the mixture and on other text."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained", sharey=True)
        for axis, names, title in zip(
            axes, (MIXTURE, OUTSIDE), ("Held-out text of the mixture", "Other text"), strict=True
        ):
            for colour, kind in zip(PALETTE, KINDS.values(), strict=False):
                points = sorted((h.share, h.pooled(names)["kl"]) for h in heads if h.kind == kind and h.is_exact)
                points = [(100 * share, lost) for share, lost in points if math.isfinite(lost)]
                if points:
                    axis.plot(*zip(*points, strict=True), "o-", color=colour, label=kind)
            axis.set(title=title, xscale="log", yscale="log", xlabel="bytes, % of the old head's in bf16")
            axis.set_xticks([1, 2, 5, 10, 25, 50], ["1", "2", "5", "10", "25", "50"])
            axis.minorticks_off()
        axes[0].set(ylabel="divergence from the old head, nats")
        axes[0].legend()
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
        plt.close(figure)


def rare(heads: list[Head], path: Path) -> None:
    """Nats lost against the rank of the token."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
        for colour, head in zip(PALETTE, heads, strict=False):
            found = [(2**o, head.octave(o)) for o in range(18)]
            points = [(rank, some["lost"]) for rank, some in found if some["positions"] >= 30]
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=head.name)
        axis.set(
            xscale="log", xlabel="rank of the token by frequency (an octave from here)", ylabel="lost, nats per token"
        )
        axis.legend()
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
        plt.close(figure)


def filled(path: Path, name: str, table: str) -> None:
    """Put a table between its markers in a page."""
    pattern = rf"(<!-- real: {name} -->\n).*?(<!-- end of real -->)"
    text = path.read_text(encoding="utf-8")
    page, count = re.subn(pattern, lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{path} has {count} places '<!-- real: {name} -->'; it needs one")
    path.write_text(page, encoding="utf-8")


def sentence(heads: list[Head]) -> str:
    """What Gemma's heads keep, and what they lose in a language that was not in their training text."""
    codes = [head for head in heads if head.kind == "code"]
    trimmed, int4 = (next(head for head in heads if head.key == key) for key in ("trimmed-0.02", "int4-corrected"))

    def told(figure: Callable[[Head], str]) -> str:
        *others, last = map(figure, codes)
        return f"{', '.join(others)} and {last}"

    def top1(head: Head) -> str:
        return f"{head.pooled(MIXTURE)['top1']:.1%}"

    def ratio(head: Head) -> str:
        return f"{head.pooled(MIXTURE)['ratio']:.2f} ×"

    def german(head: Head) -> str:
        return f"{head.pooled(['german'])['lost']:.1f}"

    shares = told(lambda head: f"{head.share:.0%}")
    text = (
        f"On Gemma-3-270M (V = 262,144), codes of {shares} of the bytes keep {told(top1)} of top-1 accuracy at "
        f"{told(ratio)} the perplexity. Int4 with errors corrected (28%) keeps {top1(int4)} at {ratio(int4)}; a "
        f"vocabulary trimmed to 2% keeps {top1(trimmed)}, but can never write the other tokens. On German, which was "
        f"not in their training text, the codes lose {told(german)} nats per token, int4 {german(int4)}: train on "
        "every language that your model will write."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False)


def conversion() -> str:
    """The time and the outcome of `convert` itself, without steps of the backbone and with them."""
    alone, more = (Result.read(RESULTS / f"convert-smollm2{kind}.json") for kind in ("", "-backbone"))
    config = more.config

    def told(result: Result) -> str:
        before, after = result.metrics["before"], result.metrics["after"]
        minutes = sum(stage["processor_seconds"] for stage in result.metrics["stages"].values()) / 60
        kept, ratio = after["top1"] / before["top1"], after["perplexity"] / before["perplexity"]
        spent = f"{minutes:.0f} minutes of one core"
        return f"{spent} and keeps {kept:.1%} of top-1 accuracy at {ratio:.2f} × the perplexity"

    text = (
        f"`codehead convert {config['model']} --budget {config['budget']}` with {config['tokens']:,} "
        f"tokens and {config['steps']} steps takes {told(alone)}. With {config['backbone_steps']} further steps of the "
        f"backbone it takes {told(more)}."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False)


def heads_of(name: str) -> list[Head]:
    """The heads of a result, the smallest first."""
    metrics = Result.read(RESULTS / f"{name}.json").metrics["heads"]
    return sorted((Head(key, found) for key, found in metrics.items()), key=lambda head: head.share)


def report(name: str) -> list[Head]:
    """Fill the page of a result and draw its pictures; returns the heads."""
    page, heads = PAGES / name / "report.md", [head for head in heads_of(name) if head.kind != ASIDE]
    chosen = [head for head in heads if head.key in COMPARED]
    for table, make in {"overall": overall, "domains": domains, "learning": learning}.items():
        filled(page, table, make(heads))
    filled(page, "octaves", octaves(chosen))
    frontier(heads, page.with_name("frontier.png"))
    rare(chosen, page.with_name("rare.png"))
    return heads


def main() -> None:
    """Fill the pages and draw the pictures."""
    everything, heads = heads_of(SMOLLM2), report(SMOLLM2)
    filled(PAGES / SMOLLM2 / "report.md", "own text", own_text(everything))
    filled(PAGES / SMOLLM2 / "report.md", "bars", bars(heads))
    filled(ROOT / "README.md", "table", readme(heads))
    filled(ROOT / "docs/picking.md", "picking", picking(heads))
    filled(ROOT / "docs/results.md", "results", readme(heads))
    for path in (ROOT / "README.md", ROOT / "docs/convert.md"):
        filled(path, "convert", conversion())
    of_gemma = report(GEMMA)
    filled(ROOT / "docs/picking.md", "picking gemma", picking(of_gemma))
    on_gemma = sentence(of_gemma)
    for page in (ROOT / "README.md", ROOT / "docs/results.md"):
        filled(page, "gemma", on_gemma)


if __name__ == "__main__":
    main()
