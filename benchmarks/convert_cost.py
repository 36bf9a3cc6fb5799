r"""Time and memory of `codehead convert` by stage, on a real model.

    python benchmarks/convert_cost.py --model real-models/gemma-3-270m --data mix.jsonl --budget 2% \
        --out results/benchmarks/convert-gemma3.json

Memory is sampled twenty times a second while a stage runs: the resident set, and the part of it outside mapped files
(a system short of memory can drop those). A table of the result is written beside it.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from screening import recorded
from transformers import AutoConfig, AutoModelForCausalLM

from codehead.conversion import convert
from codehead.lab.result import Result

GIB = 2**30
TIMES, KINDS = ("seconds", "processor_seconds"), ("resident", "unmapped")
EVERY = 0.05
"""Seconds between memory samples."""


class Stages:
    """Wall seconds, processor seconds and peak memory of every stage, in order."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self.stage, self.since = "loading", clocks()

    def show(self, stage: str, done: int, total: int) -> None:
        """Close the last stage when another begins."""
        if stage != self.stage:
            self.close()
            self.stage = stage
            print(f"{stage} …", flush=True)

    def look(self) -> None:
        """Record the current memory."""
        now, peaks = memory(), self._entry()
        for kind, size in now.items():
            peaks[kind] = max(peaks[kind], size)

    def close(self) -> None:
        """Add the time since the last stage ended."""
        now, entry = clocks(), self._entry()
        for name, value in now.items():
            entry[name] += value - self.since[name]
        self.since = now

    def _entry(self) -> dict[str, float]:
        return self.found.setdefault(self.stage, {**dict.fromkeys(TIMES, 0.0), **dict.fromkeys(KINDS, 0)})


def clocks() -> dict[str, float]:
    """The clocks, in seconds."""
    return dict(zip(TIMES, (time.monotonic(), time.process_time()), strict=True))


def memory() -> dict[str, int]:
    """Resident bytes, and those of them outside mapped files."""
    status = Path("/proc/self/status").read_text()
    sizes = {key: 1024 * int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) for key in ("VmRSS", "RssAnon")}
    return {"resident": sizes["VmRSS"], "unmapped": sizes["RssAnon"]}


@contextmanager
def watched(stages: Stages) -> Iterator[None]:
    """Sample the memory continuously, from a thread."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(EVERY):
            stages.look()

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        stages.close()


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The cost of every stage, and the accuracy that the new head keeps."""
    names = ("budget", "tokens", "own_text", "steps", "backbone_steps")
    stages, sizes = Stages(), {name: getattr(options, name) for name in names}
    with tempfile.TemporaryDirectory() as folder, watched(stages):
        made = convert(options.model, options.data, out=Path(folder) / "out", show=stages.show, **sizes)
    kept = {key: made.record[key] for key in ("before", "after")}
    return {"stages": stages.found, "model_bytes": 4 * num_parameters(options.model), **kept}


def num_parameters(model: str) -> int:
    """Bytes of a stock model, tied weights counted once."""
    with torch.device("meta"):
        stock = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    return sum(weight.numel() for weight in stock.parameters())


def table(result: Result) -> str:
    """The stages of a result as Markdown, and the outcome."""
    found, config, hardware = result.metrics, result.config, result.provenance["hardware"]
    costs, before, after = found["stages"], found["before"], found["after"]
    whole = {kind: max(cost[kind] for cost in costs.values()) for kind in KINDS}
    costs["all"] = {**{name: sum(cost[name] for cost in costs.values()) for name in TIMES}, **whole}
    header = ["stage", "minutes", "of processors", "resident", "of it in no mapped file"]
    lines = [f"| {' | '.join(header)} |", "| --- |" + " ---: |" * (len(header) - 1)]
    for name, cost in costs.items():
        cells = [*(f"{cost[kind] / 60:.1f}" for kind in TIMES), *(f"{cost[kind] / GIB:.2f} GiB" for kind in KINDS)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    steps = f"{config['steps']} steps" + (
        f" and {more} of the backbone" if (more := config.get("backbone_steps")) else ""
    )
    return "\n".join(lines) + (
        f"\n\n`codehead convert {config['model']} --budget {config['budget']}`, {config['tokens']:,} tokens, "
        f"{config.get('own_text', 0):.0%} of them its own, {steps}; "
        f"{hardware['threads']} threads of {hardware['cpu']}. The weights of the model alone take "
        f"{found['model_bytes'] / GIB:.2f} GiB in float32. The new head keeps "
        f"{after['top1'] / before['top1']:.1%} of the old one's top-1 accuracy at "
        f"{after['perplexity'] / before['perplexity']:.3f} times its perplexity, on {after['tokens']:,} tokens of "
        "held-out text.\n"
    )


def main() -> None:
    """Parse the command line, convert, write the result and its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a stock checkpoint")
    parser.add_argument("--data", required=True, help="text to learn from, a file of documents")
    parser.add_argument("--budget", default="2%")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--own-text", type=float, default=0.0, help="share of the tokens that the model writes")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--backbone-steps", type=int, default=0, help="of LoRA on the backbone, with the new head")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args(namespace=argparse.Namespace(shape=None, prompts=None))
    recorded("convert-cost", options, measured)
    shown = table(Result.read(options.out))
    options.out.with_suffix(".md").write_text(shown, encoding="utf-8")
    print(shown)


if __name__ == "__main__":
    main()
