"""Peak memory and time of loss and gradients: Softmax, Softmax in pieces, and codes.

    python benchmarks/training_memory.py --out results/benchmarks/training-memory-cpu.json --pages

Every case runs in a separate process; the cases of a shape take turns. Memory is what a step needs beyond the model and
the hidden states, including the gradients of the weights. On a CPU it is the process's peak growth as counted by the
Linux kernel, which includes library buffers; on a GPU it is torch's allocation. `--pages` writes the result into the
page about losses and README; with `--render`, from an existing result file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from decision_layer import layer_of
from pages import filled
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.config import DecisionConfig, ModelShape
from codehead.lab.result import Result
from codehead.training.provenance import provenance, utc_now

SEED = 0
SHAPES = ((2048, 50_272), (1536, 151_936), (640, 262_144))
"""(H, V) of OPT-1.3B, Qwen2.5-1.5B and Gemma-3-270M."""
LONGEST = 2.0
"""Seconds after which a case is not run again."""
MARK = "training memory"
ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "docs" / "losses.md", ROOT / "README.md")
LossOf = Callable[[Tensor, Tensor], Tensor]
"""(hidden states `(tokens, H)`, labels `(tokens,)`) → loss."""


def softmax(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[ModelShape], nn.Module]:
    """A Softmax layer under a loss of (hidden states, weight, labels)."""

    def layer(shape: ModelShape) -> nn.Module:
        head = nn.Linear(shape.hidden_size, shape.num_classes, bias=False)
        head.loss = lambda hidden, labels: loss(hidden, head.weight, labels)
        return head

    return layer


def stock(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The loss of transformers' models."""
    return F.cross_entropy(F.linear(hidden, weight).float(), labels)


def chunked(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """torch's own, in pieces that it chooses (torch 2.13 and later)."""
    return F.linear_cross_entropy(hidden, weight, labels, options=nn.LinearCrossEntropyOptions())


def liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Liger-Kernel's; Triton, so on a GPU."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(weight, hidden, labels)


def cut(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Cut Cross-Entropy; Triton, so on a GPU."""
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, weight, labels)


def coded(loss: str) -> Callable[[ModelShape], nn.Module]:
    """A code of 50 bits under a loss."""
    return lambda shape: layer_of(DecisionConfig(code="minrandom", bits=50, loss=loss), shape)


def of_budget(shape: ModelShape) -> nn.Module:
    """The code with 5% of the bytes, which only the codeword loss trains."""
    return layer_of(DecisionConfig.for_budget(shape, 0.05, code="dense_random"), shape)


STOCK, TORCH, BITWISE, CODEWORD = "Softmax", "Softmax, `linear_cross_entropy`", "code, `bitwise`", "code, `codeword`"
BUDGET = "code of 5%, `codeword`"
CASES = {
    STOCK: softmax(stock),
    TORCH: softmax(chunked),
    "Softmax, Liger": softmax(liger),
    "Softmax, Cut Cross-Entropy": softmax(cut),
    BITWISE: coded("bitwise"),
    CODEWORD: coded("codeword"),
    BUDGET: of_budget,
}
ON_GPU = {"Softmax, Liger": "liger_kernel", "Softmax, Cut Cross-Entropy": "cut_cross_entropy"}
"""Cases that run where there is a GPU and the package is installed."""


def measure(case: str, shape: ModelShape, tokens: int) -> dict[str, float]:
    """The peak of one step in this process, and the median time over as many steps as fit into LONGEST."""
    torch.manual_seed(SEED)
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    layer = CASES[case](shape).to(device, dtype)
    hidden = torch.randn(tokens, shape.hidden_size, device=device, dtype=dtype, requires_grad=True)
    labels = torch.randint(shape.num_classes, (tokens,), device=device)
    nn.Linear(8, 8).to(device, dtype)(torch.ones(8, 8, device=device, dtype=dtype)).sum().backward()  # starts libraries

    def step() -> tuple[float, float]:
        hidden.grad = None
        layer.zero_grad(set_to_none=True)
        start, processor = time.perf_counter(), time.process_time()
        layer.loss(hidden, labels).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, time.process_time() - processor

    before = resident(device, reset=True)
    times = [step()]
    extra = resident(device, peak=True) - before
    while sum(wall for wall, _ in times) < LONGEST:
        times.append(step())
    wall, processor = (statistics.median(values) for values in zip(*times, strict=True))
    return {"extra_bytes": extra, "seconds": wall, "processor_seconds": processor}


def resident(device: str, peak: bool = False, reset: bool = False) -> int:
    """Bytes of memory in use now, or at the peak since the last reset."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status)[1])


def runs_here(case: str) -> bool:
    """Whether this machine has what a case needs."""
    return case not in ON_GPU or (torch.cuda.is_available() and find_spec(ON_GPU[case]) is not None)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All cases of all shapes: medians over the repeats, and shares of the Softmax of the same repeat."""
    found: dict[str, Any] = {}
    for hidden_size, num_classes in SHAPES:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in CASES if runs_here(name)}
        for _ in range(options.repeats):
            for name, some in runs.items():
                job = [name, str(hidden_size), str(num_classes), str(options.tokens)]
                output = subprocess.run([sys.executable, __file__, "--job", *job], check=True, stdout=subprocess.PIPE)
                some.append(json.loads(output.stdout))
                print(*job, some[-1], flush=True)
        found[str(num_classes)] = {name: summary(some, runs[STOCK]) for name, some in runs.items()}
    return found


def summary(runs: list[dict[str, float]], stocks: list[dict[str, float]]) -> dict[str, float]:
    """Medians of every figure, and of its ratio to Softmax's."""
    pairs = list(zip(runs, stocks, strict=True))
    return {
        **{key: statistics.median(run[key] for run in runs) for key in runs[0]},
        **{f"{key}_ratio": statistics.median(run[key] / base[key] for run, base in pairs) for key in runs[0]},
    }


def table(result: Result) -> str:
    """The figures of a result as Markdown, and how they were measured."""
    columns = [f"V = {int(size):,}: memory | time" for size in result.metrics]
    lines = [f"| head and loss | {' | '.join(columns)} |", "| --- |" + " ---: | ---: |" * len(columns)]
    for name in next(iter(result.metrics.values())):
        cells = [part for figures in result.metrics.values() for part in cells_of(figures[name])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    origin, config = result.provenance, result.config
    hardware, sizes = origin["hardware"], ", ".join(f"{size:,}" for size, _ in config["shapes"])
    repeats = "one run each" if config["repeats"] == 1 else f"medians of {config['repeats']} runs"
    return "\n".join(lines) + (
        f"\n\n{config['tokens']:,} tokens, H = {sizes}, {hardware['gpu'] or hardware['cpu']}, {hardware['threads']} "
        f"threads, {repeats}."
    )


def sentence(result: Result) -> str:
    """The memory of a step at one of the shapes, for the losses that matter."""
    size, tokens = "151936", result.config["tokens"]
    needs = {name: f"{one['extra_bytes'] / 1e9:.2f} GB" for name, one in result.metrics[size].items()}
    text = (
        f"**Training needs less memory.** Loss and gradients of {tokens:,} tokens at V = {int(size):,} take "
        f"{needs[STOCK]} with Softmax and {needs[TORCH]} with torch's `linear_cross_entropy`. With a code of 50 bits "
        f"they take {needs[CODEWORD]} (loss `codeword`) or {needs[BITWISE]} (loss `bitwise`); with a code of 5% of the "
        f"bytes, {needs[BUDGET]} (`codeword`; [measured](docs/losses.md#memory-and-time-of-a-training-step))."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)


def page(path: Path, result: Result) -> str:
    """A page with this result."""
    text = sentence(result) if path.name == "README.md" else table(result)
    return filled(path.read_text(encoding="utf-8"), MARK, text)


def cells_of(one: dict[str, float]) -> Iterator[str]:
    """Memory and time, with their shares of Softmax's."""
    yield f"{one['extra_bytes'] / 1e9:.2f} GB ({share(one['extra_bytes_ratio'])})"
    yield f"{one['seconds']:.2f} s ({share(one['seconds_ratio'])})"


def share(ratio: float) -> str:
    """In per cent, with one decimal where it is small."""
    return f"{ratio:.0%}" if ratio >= 0.1 else f"{ratio:.1%}"


def write(options: argparse.Namespace) -> None:
    """Measure every case and write the result file."""
    started, start, load = utc_now(), time.monotonic(), os.getloadavg()[0]
    metrics = measured(options)
    config = {"shapes": SHAPES, "tokens": options.tokens, "repeats": options.repeats}
    record = {"started_at": started, "wall_seconds": round(time.monotonic() - start, 1), "load": load}
    Result("training-memory", config, metrics, {**provenance(seed=SEED), **record}).write(options.out)


def main() -> None:
    """Parse the command line, measure, write the result file and the table of a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--pages", action="store_true", help="write the pages that show the result")
    parser.add_argument("--render", action="store_true", help="measure nothing: the result file is there")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--job", nargs=4, metavar=("CASE", "H", "V", "TOKENS"), help="measure this here and print it")
    options = parser.parse_args()
    if options.job:
        case, hidden_size, num_classes, tokens = options.job
        shape = ModelShape(int(hidden_size), int(num_classes), tied=False)
        print(json.dumps(measure(case, shape, int(tokens))))
        return
    if not options.render:
        write(options)
    result = Result.read(options.out)
    for path in PAGES if options.pages else ():
        path.write_text(page(path, result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
