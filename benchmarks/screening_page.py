"""Text and tables on screening in README and its two pages, from the result files of `benchmarks/screening*.py`.

python benchmarks/screening_page.py
"""

from __future__ import annotations

import json
import re
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

from pages import filled

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "benchmarks"
PAGES = (ROOT / "docs" / "screening.md", ROOT / "docs" / "results" / "screening" / "report.md")
"""What a user needs, and everything measured."""
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "screening.png"
SHAPES = ("50272", "151936")
"""Vocabularies whose rows are random."""
MODELS = {"smollm2": "SmolLM2-135M-Instruct", "gemma3": "Gemma-3-270M"}
NONE = 2e-4
"""The place where a share of 0 is drawn."""
TICKS = (1, 2, 5, 10, 20, 50, 100)
"""Milliseconds."""
COSTS = ("recall", "MB read", "MB held", "build, s")
COMPARED = {
    "torch fp32": "dense", "onnxruntime int4": "int4 in onnxruntime", "screen fast": "screened, `fast`",
    "screen exact, calibrated": "screened, `exact`",
}  # fmt: skip
"""Heads in the table for users."""
HEADS = {"torch fp32": "the dense head", "onnxruntime int4": "int4 in onnxruntime"}
AIMS = (
    ("smollm2", "fast", "onnxruntime int4", 3), ("smollm2", "fast", "torch fp32", 10),
    ("gemma3", "fast", "onnxruntime int4", 6), ("gemma3", "fast", "torch fp32", 16),
    ("smollm2", "exact, calibrated", "torch fp32", 5), ("gemma3", "exact, calibrated", "torch fp32", 5),
    ("smollm2", "exact, proof", "torch fp32", 2.5), ("gemma3", "exact, proof", "torch fp32", 2.5),
)  # fmt: skip
"""Model, mode, another head, and how many times faster the mode was to be."""
GENERATION = {"smollm2": 1.18, "gemma3": 1.8}
MODES = {"fast": "fast", "exact": "exact, calibrated"}
UNDRAWN = ("onnxruntime fp32", "torch int8")
"""Heads that would cover others in the picture."""


def read(model: str, what: str) -> dict[str, Any] | None:
    """The metrics of one measurement of a model; None if there is none."""
    path = RESULTS / f"screening-{model}-{what}.json"
    if not path.is_file():
        return None
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return metrics


def rows(head: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def heads(model: str, what: str = "head") -> str:
    """The head step with every method, the fastest first."""
    metrics = read(model, what)
    assert metrics is not None
    kinds = {"milliseconds": "cold", "milliseconds_warm": "warm"}
    found = sorted(metrics["heads"].items(), key=lambda item: item[1]["milliseconds"]["1"])
    batches = list(found[0][1]["milliseconds"])
    columns = [f"batch {batch}, {kind}" for batch in batches for kind in kinds.values()]
    body = [
        [name, *costs(one), *(f"{one[key][batch]:.2f}" for batch in batches for key in kinds)] for name, one in found
    ]
    return rows(["head", *COSTS, *columns], body)


def costs(one: dict[str, Any]) -> list[str]:
    """The recall, memory and time of building of a head; the oldest result files do not have the bytes held."""
    held = f"{one['bytes_held'] / 1e6:.0f}" if "bytes_held" in one else "–"
    return [f"{one['recall']:.2%}", f"{one['bytes_read'] / 1e6:.1f}", held, f"{one['build_seconds']:.0f}"]


def steps() -> str:
    """The head step of both models: the dense head, the fastest baseline and the modes of screening."""
    body = []
    for model, title in MODELS.items():
        one_thread, two = (read(model, what) for what in ("head", "head-2-threads"))
        assert one_thread and two
        again = {name.split(" (")[0]: one["milliseconds"] for name, one in two["heads"].items()}
        for name, one in one_thread["heads"].items():
            short = name.split(" (")[0]
            if short in COMPARED:
                times = [*one["milliseconds"].values(), again[short]["1"]]
                body.append([f"{title}, {COMPARED[short]}", *costs(one), *(f"{time:.1f}" for time in times)])
    batches = [f"batch {batch}" for batch in one["milliseconds"]]
    return rows(["head", *COSTS, *batches, "batch 1, two threads"], body)


def aims() -> str:
    """What was aimed at beside what was reached, with caches cold and warm."""
    body = [
        [f"{MODELS[model]}, one sequence: {mode}", f"{aim:g} × {HEADS[other]}", *faster(model, mode, other)]
        for model, mode, other, aim in AIMS
    ]
    for model, title in MODELS.items():
        body.append(
            [f"{title}, 16 sequences: fast", f"1 × {HEADS['torch fp32']}", *faster(model, "fast", "torch fp32", "16")]
        )
        body.append(
            [f"{title}, generation", f"{GENERATION[model]:g} × dense", f"{_faster(model, 'screened'):.2f} ×", "–"]
        )
    return rows(["", "aim", "cold", "warm"], body)


def faster(model: str, mode: str, other: str, batch: str = "1") -> list[str]:
    """How many times faster a mode is than another head, with caches cold and warm."""
    measured = read(model, "head")
    assert measured
    found = {name.split(" (")[0].removeprefix("screen "): one for name, one in measured["heads"].items()}
    kinds = ("milliseconds", "milliseconds_warm")
    return [f"{found[other][kind][batch] / found[mode][kind][batch]:.1f} ×" for kind in kinds]


def texts() -> str:
    """How many greedy tokens are the dense head's, by kind of text."""
    found = {(model, mode): metrics for model in MODELS for mode in MODES if (metrics := read(model, f"texts-{mode}"))}
    kinds = list(next(iter(found.values()))["identical"])
    body = []
    for (model, mode), metrics in found.items():
        same = metrics["identical"]
        dense = metrics["dense_steps"]["tokens"] / metrics["dense_steps"]["of"]
        kept = metrics["screening"]
        code = f"{kept['bits']:,} bits, {kept['candidates']:,} rows"
        body.append([
            f"{MODELS[model]}, {MODES[mode]} ({code})", identical(metrics), f"{dense:.1%}",
            *(_share(same[kind]) for kind in kinds),
        ])  # fmt: skip
    return rows(["", "identical tokens", "steps with the dense head", *kinds], body)


def _share(one: dict[str, int]) -> str:
    return f"{one['tokens'] / one['of']:.2%}"


def generation() -> str:
    """Tokens per second of one sequence."""
    body = []
    for model, name in MODELS.items():
        if metrics := read(model, "generation"):
            rates = metrics["tokens_per_second"]
            others = [f"{rates[kind]:.1f} ({rates[kind] / rates['dense']:.2f}×)" for kind in ("screened", "no head")]
            body.append([name, f"{rates['dense']:.1f}", *others])
    return rows(["", "dense", "screened", "no head at all"], body)


def coded() -> str:
    """Time of heads with a code, as `decode` finds their best tokens, beside Softmax."""
    metrics = json.loads((RESULTS / "decision-layer-cpu.json").read_text(encoding="utf-8"))["metrics"]["inference"]
    names = {
        "minimal": "Minimal", "minrandom-50": "MinRandom, 50 bits",
        **{f"budget-{share}%-int4-packed": f"a code of {share}% of the bytes, int4" for share in (1, 2, 5)},
    }  # fmt: skip
    body = [
        [title, *(f"{by_batch[name]['ratio_to_softmax']:.1%}" for by_batch in metrics.values())]
        for name, title in names.items()
    ]
    return rows(["head", *(f"{batch} tokens" if batch != "1" else "1 token" for batch in metrics)], body)


def bounds() -> str:
    """How many tokens each bound leaves possible, by model; the lengths of codes differ."""
    found = {title: metrics["bounds"] for model, title in MODELS.items() if (metrics := read(model, "bounds"))}
    body: dict[str, list[str]] = {}
    for one in found.values():
        for name, left in one.items():
            cells = body.setdefault(re.sub(r" of [\d,]+ bits", "", name), [])
            cells += [f"{left['median']:,.0f}", f"{left['percentile_99']:,.0f}", f"{left['bytes_read'] / 1e6:.1f}"]
    columns = [f"{title}: {of}" for title in found for of in ("median", "99th percentile", "MB read")]
    return rows(["bound", *columns], [[name, *cells] for name, cells in body.items()])


def clusters() -> str:
    """Numbers of clusters searched, and heads that took turns with them, one sequence."""
    body = [
        [
            f"{MODELS[model]}, {name}", f"{one['recall']:.2%}", f"{one['bytes_read'] / 1e6:.1f}",
            *(f"{one[key]['1']:.2f}" for key in ("milliseconds", "milliseconds_warm")),
        ]
        for model in MODELS
        if (metrics := read(model, "clusters"))
        for name, one in sorted(metrics["heads"].items(), key=lambda item: item[1]["milliseconds"]["1"])
    ]  # fmt: skip
    return rows(["head", "recall", "MB read", "cold", "warm"], body)


def codes() -> str:
    """How often the dense head's choice is among the best tokens of each code, by model."""
    found: dict[str, dict[str, Any]] = {}
    for model, title in MODELS.items():
        for path in sorted(RESULTS.glob(f"screening-{model}-codes*.json")):
            found[title] = found.get(title, {}) | json.loads(path.read_text(encoding="utf-8"))["metrics"]["codes"]
    best = list(next(iter(next(iter(found.values())).values()))["recall"])[1:]
    names = dict.fromkeys(name for one in found.values() for name in one)
    body = [
        [
            name,
            *(f"{one[name]['recall'][count]:.2%}" if name in one else "–" for one in found.values() for count in best),
        ]
        for name in names
    ]
    return rows(["code", *(f"{title}, best {int(count):,}" for title in found for count in best)], body)


def profile() -> str:
    """Milliseconds of the parts of a step, cold and hot."""
    found = {title: metrics for model, title in MODELS.items() if (metrics := read(model, "profile"))}
    columns = [(title, kind) for title in found for kind in ("cold", "hot")]
    parts = sorted(next(iter(found.values()))["cold"].items(), key=lambda part: -part[1])
    body = [[part, *(f"{found[title][kind][part]:.2f}" for title, kind in columns)] for part, _ in parts]
    return rows(["", *(f"{title}, {kind}" for title, kind in columns)], body)


def items() -> str:
    """The best ten of two million short rows."""
    metrics = json.loads((RESULTS / "screening-items.json").read_text(encoding="utf-8"))["metrics"]
    body = [
        [
            f"{certificate}, {one['bits']} bits", f"{one['identical']} of {one['of']}",
            f"{one['milliseconds']['dense']:.0f}", f"{one['milliseconds']['screened']:.0f}",
        ]
        for certificate, one in metrics["heads"].items()
    ]  # fmt: skip
    return rows(["certificate", "same ten", "dense, ms", "screened, ms"], body)


def identical(metrics: dict[str, Any]) -> str:
    """How many greedy tokens of all kinds of text are the dense head's."""
    return "{:,} of {:,}".format(*(sum(one[key] for one in metrics["identical"].values()) for key in ("tokens", "of")))


def summary() -> str:
    """README's text: the head step, greedy text and whole generation of both models."""
    exact = " and ".join(
        f"{identical(found)} greedy tokens of {title}"
        for model, title in MODELS.items()
        if (found := read(model, "texts-exact"))
    )
    limits = " and ".join(f"{_faster(model, 'no head'):.2f} ×" for model in MODELS)
    text = (
        f"Without any head, generation would be {limits} as fast. In mode `exact`, {exact} "
        "are those of the dense head. Times are for one sequence on a CPU in float32 "
        "([how they were measured](docs/results/screening/report.md)). Unlike the int4 head above, onnxruntime's also "
        "rounds the hidden state and does not correct errors."
    )
    header = ["Head", "Head step", "Dense head's choice kept", "Greedy tokens identical", "Speed of generation"]
    body = [line for model in MODELS for line in _in_readme(model)]
    return f"{rows(header, body)}\n\n{textwrap.fill(text, 120, break_on_hyphens=False)}"


def _in_readme(model: str) -> list[list[str]]:
    """README's lines of a model."""
    measured, written = read(model, "head"), read(model, "texts-fast")
    assert measured and written
    found = {name.split(" (")[0]: one for name, one in measured["heads"].items()}
    names = {"torch fp32": "dense", "onnxruntime int4": "int4 in onnxruntime", "screen fast": "screened, mode `fast`"}
    same = {"screen fast": identical(written)}
    speed = {"torch fp32": "1.00 ×", "screen fast": f"{_faster(model, 'screened'):.2f} ×"}
    return [
        [
            f"{MODELS[model]}, {title}", f"{found[name]['milliseconds']['1']:.1f} ms", f"{found[name]['recall']:.1%}",
            same.get(name, "–"), speed.get(name, "–"),
        ]
        for name, title in names.items()
    ]  # fmt: skip


def _faster(model: str, kind: str) -> float:
    """Tokens per second as a multiple of the dense head's."""
    spoken = read(model, "generation")
    assert spoken
    rates: dict[str, float] = spoken["tokens_per_second"]
    return rates[kind] / rates["dense"]


def page(text: str) -> str:
    """A page with its tables from the result files."""
    makers = {
        made.__name__: made for made in (steps, aims, texts, generation, coded, items, bounds, profile, clusters, codes)
    }
    makers |= {f"head-{model}": partial(heads, model) for model in (*MODELS, *SHAPES)}
    makers |= {f"head-2-threads-{model}": partial(heads, model, "head-2-threads") for model in MODELS}
    for name in re.findall("<!-- benchmark: (.*?) -->", text):
        text = filled(text, name, makers[name]())
    return text


def draw(path: Path) -> None:
    """Milliseconds of a cold step at batch 1 against the share of positions that lose the dense head's choice."""
    import matplotlib.pyplot as plt

    from codehead.lab.reports.drawing import DPI, PALETTE, STYLE

    found = {title: metrics for model, title in MODELS.items() if (metrics := read(model, "head"))}
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(1, len(found), figsize=(5.5 * len(found), 4.8), sharey=True, squeeze=False)
        for axes, (title, metrics) in zip(all_axes[0], found.items(), strict=True):
            for name, one in metrics["heads"].items():
                if name in UNDRAWN:
                    continue
                own, lost = name.startswith("screen"), 1 - one["recall"]
                at = (one["milliseconds"]["1"], max(lost, NONE))
                axes.plot(*at, "o", color=PALETTE[0] if own else PALETTE[-1])
                turn = 0 if lost > NONE else 50
                label = name.split(" (")[0].replace(", rank", "").replace(", calibrated", "")
                axes.annotate(label, at, (4, 5), textcoords="offset points", fontsize=8, rotation=turn)
            axes.set(title=title, xlabel="milliseconds a step, one sequence, cold", xscale="log", yscale="log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
            axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
            axes.set_xlim(min(one["milliseconds"]["1"] for one in metrics["heads"].values()) / 1.3, None)
            axes.margins(x=0.15)
        all_axes[0][0].set_ylabel("positions with another choice")
        all_axes[0][0].set_yticks([NONE, 1e-3, 1e-2, 1e-1], ["none seen", "0.1%", "1%", "10%"])
        figure.tight_layout()
        figure.savefig(path, dpi=DPI)


def main() -> None:
    """Write the pages and the picture."""
    README.write_text(filled(README.read_text(encoding="utf-8"), "screening", summary()), encoding="utf-8")
    for path in PAGES:
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    draw(PICTURE)


if __name__ == "__main__":
    main()
