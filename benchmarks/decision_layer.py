"""Time and memory of decision layers alone, each as a ratio to the Softmax layer of the same model.

    python benchmarks/decision_layer.py --hidden-size 2048 --vocab-size 50272 --out results/decision-layer-cpu.json

Inference: hidden states → best token, at several batch sizes. Training: loss and gradients of a batch of
tokens, with the peak of extra device memory on a GPU. Layers take turns within every repeat; medians are reported.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import parametrize

from codehead import codes, heads
from codehead.codes.packing import row_bytes
from codehead.config import DecisionConfig, ModelShape
from codehead.decoding.extras import Corrections, ExtendedHead, Refinement
from codehead.lab.result import Result
from codehead.layer import DecisionLayer
from codehead.models.rounding import INT4, round_parts
from codehead.training.provenance import provenance, utc_now

SEED = 0
BUDGETS = (0.01, 0.02, 0.05)


def layers(hidden_size: int, num_classes: int, device: torch.device) -> dict[str, DecisionLayer]:
    """The layers to compare, as they are trained; bfloat16 weights on a GPU, float32 on a CPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shape = ModelShape(hidden_size, num_classes, tied=False)
    configs = {
        "softmax": DecisionConfig(code="one_vs_all", loss="codeword"),
        "minimal": DecisionConfig(code="minimal"),
        "minrandom-50": DecisionConfig(code="minrandom", bits=50),
        "minrandom-100": DecisionConfig(code="minrandom", bits=100),
        "minrandom-50-codeword": DecisionConfig(code="minrandom", bits=50, loss="codeword"),
        "mtl-minrandom-50-128": DecisionConfig(code="minrandom", bits=50, head="mtl", width=128),
        **{f"budget-{share:.0%}": DecisionConfig.for_budget(shape, share, code="dense_random") for share in BUDGETS},
    }
    torch.manual_seed(SEED)
    return {name: layer_of(config, shape).to(device, dtype) for name, config in configs.items()}


def layer_of(config: DecisionConfig, shape: ModelShape) -> DecisionLayer:
    """The layer before training; extra bits are random, since they do not affect the time."""
    design = str(config.code)
    codebook = codes.build(design, shape.num_classes, bits=config.bits, seed=SEED, **_fast(design))
    head = heads.build(config.head, shape.hidden_size, codebook.length, **config.head_options)
    if not config.token_bias:
        return DecisionLayer(codebook, head, config.loss)
    tokens, bits = config.num_extra_bit_tokens, config.extra_bits
    plane = torch.randint(256, (tokens, row_bytes(bits)), dtype=torch.uint8)
    corrections = Corrections(
        shape.num_classes,
        torch.arange(config.num_dense_rows),
        config.token_bias,
        Refinement.of(shape.num_classes, torch.arange(tokens), plane, bits) if tokens else None,
    )
    head = ExtendedHead(head, shape.hidden_size, corrections.num_outputs)
    return DecisionLayer(codebook, head, config.loss, corrections=corrections)


def stored(trained: dict[str, DecisionLayer]) -> dict[str, DecisionLayer]:
    """The same layers as stored after training: rows in int4, codewords packed."""
    found = {}
    for name in (f"budget-{share:.0%}" for share in BUDGETS):
        found[f"{name}-int4"] = layer = copy.deepcopy(trained[name])
        round_parts(layer.head, layer.decision, INT4)
    for name in ("minrandom-50", "minrandom-100", *found):
        found[f"{name}-packed"] = packed = copy.deepcopy(found.get(name, trained.get(name)))
        packed.decision.packed = True
    return found


def _fast(design: str) -> dict[str, int]:
    """One candidate is enough: the time of a layer does not depend on the quality of its code."""
    return {"candidates": 1} if design in ("dense_random", "minrandom") else {}


def best_token(layer: DecisionLayer, hidden: torch.Tensor) -> Callable[[], Any]:
    """Hidden states → the id of the most probable token, as `generate` finds it: scanned where that is faster."""

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return layer.decision.best(layer.head(hidden), 1).ids

    return run


def training_step(layer: DecisionLayer, hidden: torch.Tensor, labels: torch.Tensor) -> Callable[[], Any]:
    """Loss and gradients of the head and the hidden states."""

    def run() -> None:
        hidden.grad = None
        layer.zero_grad(set_to_none=True)
        layer.loss(hidden, labels).backward()

    return run


def seconds(run: Callable[[], Any], device: torch.device, at_least: float = 0.02) -> float:
    """Seconds per call, over as many calls as fill `at_least` seconds."""
    calls, elapsed = 1, 0.0
    while True:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        _synchronize(device)
        elapsed = time.perf_counter() - start
        if elapsed >= at_least:
            return elapsed / calls
        calls *= 2


def interleaved(runs: dict[str, Callable[[], Any]], device: torch.device, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of every run, and its median ratio to the Softmax of the same repeat."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    return {
        name: {
            "seconds": statistics.median(values),
            "ratio_to_softmax": statistics.median(t / s for t, s in zip(values, times["softmax"], strict=True)),
        }
        for name, values in times.items()
    }


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """Device memory that a run needs beyond what is allocated before it; None on a CPU."""
    if device.type != "cuda":
        return None
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one (hidden size, vocabulary) pair."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = layers(options.hidden_size, options.vocab_size, device)
    compared = trained | stored(trained)
    dtype = next(trained["softmax"].parameters()).dtype
    metrics: dict[str, Any] = {"dtype": str(dtype), "inference": {}, "training": {}}
    for batch in options.batch_sizes:
        hidden = torch.randn(batch, options.hidden_size, device=device, dtype=dtype)
        runs = {name: best_token(layer, hidden) for name, layer in compared.items()}
        with parametrize.cached():  # as in generate
            metrics["inference"][str(batch)] = interleaved(runs, device, options.repeats)
    if options.inference_only:
        return metrics
    hidden = torch.randn(options.tokens, options.hidden_size, device=device, dtype=dtype, requires_grad=True)
    labels = torch.randint(options.vocab_size, (options.tokens,), device=device)
    runs = {name: training_step(layer, hidden, labels) for name, layer in trained.items()}
    metrics["training"] = interleaved(runs, device, options.repeats)
    for name, run in runs.items():
        metrics["training"][name]["peak_bytes"] = peak_bytes(run, device)
    return metrics


def table(result: Result) -> str:
    """The ratios of a result as Markdown; written beside the result file, never by hand."""
    kinds = {f"{batch} tokens, best token": figures for batch, figures in result.metrics["inference"].items()}
    if result.metrics["training"]:
        kinds[f"{result.config['tokens']} tokens, training step"] = result.metrics["training"]
    hardware, config = result.provenance["hardware"], result.config
    lines = [
        f"Time of the decision layer alone as a share of the Softmax layer's, H = {config['hidden_size']:,}, "
        f"V = {config['vocab_size']:,}, {result.metrics['dtype']}, {hardware['gpu'] or hardware['cpu']}, "
        f"{hardware['threads']} threads; medians of {config['repeats']} interleaved repeats.\n",
        "| layer | " + " | ".join(kinds) + " |",
        "| --- |" + " ---: |" * len(kinds),
    ]
    for name in next(iter(kinds.values())):
        lines.append(f"| {name} | " + " | ".join(_ratio(figures.get(name)) for figures in kinds.values()) + " |")
    return "\n".join(lines) + "\n"


def _ratio(figures: dict[str, float] | None) -> str:
    return "–" if figures is None else f"{100 * figures['ratio_to_softmax']:.1f}%"


def main() -> None:
    """Parse the command line, measure, write the result file and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--vocab-size", type=int, default=50272)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a training step")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--inference-only", action="store_true", help="no training steps")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started, start = utc_now(), time.monotonic()
    metrics = measure(options)
    config = {key: value for key, value in vars(options).items() if key != "out"}
    record = {**provenance(seed=SEED), "started_at": started, "wall_seconds": round(time.monotonic() - start, 1)}
    result = Result("decision-layer", config, metrics, record)
    result.write(options.out)
    options.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
