"""Time of a model's head step, screened and with other methods, on its own hidden states.

Needs `pip install onnx onnxruntime onnxscript` beside codehead[fast,train].

    python benchmarks/screening.py head --model FOLDER --data TEXT --out results/screening-NAME.json
    python benchmarks/screening.py items --shape 64 2000000 --out results/….json
    python benchmarks/screening.py generation --model FOLDER --screened FOLDER --prompts FILE --out results/….json
    python benchmarks/screening.py texts --model FOLDER --screened FOLDER --prompts FILE --out results/….json

Text and prompts are those of `benchmarks/mixed_text.py`. `head`: methods take turns within every repeat, on positions
that nothing was fitted to; before each step as many bytes are read as the backbone has (`--between`, which may be 0),
so that no head is in a cache. Medians, and the recall of the dense head's choice. `generation`: tokens per second with
the dense head, screened, and with no head at all, which is the limit. `texts`: how many greedy tokens are the dense
head's; in mode "exact" both heads choose at every hidden state of the same text, one sequence at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import torch
from screening_baselines import Head, built, clustered, low_rank, onnx_heads, rabitq, torch_heads
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.decoding.numerics import top_k
from codehead.lab.result import Result
from codehead.models.hidden import hidden_states
from codehead.screening import calibration
from codehead.screening.build import text_batches
from codehead.screening.head import ScreenedLinear
from codehead.screening.screen import CERTIFICATES
from codehead.training.model import load_model
from codehead.training.provenance import provenance, utc_now
from codehead.training.tokenizer import load_tokenizer

SEED = 0
PLACES = ("model", "data", "screened", "prompts")
"""Options that are paths."""
RABITQ_DIGITS = (1, 2)
RANKS = (128, 256)
ROUNDS = 3
"""Continuations of each prompt when measuring speed."""


def quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


def states(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Rows of the head `(V, H)` and hidden states `(positions, H)`, float32."""
    if options.shape:
        size, classes = options.shape
        generator = torch.Generator().manual_seed(SEED)
        spread = torch.arange(1, size + 1) ** -0.5
        weight = torch.randn(classes, size, generator=generator) * spread
        return weight, torch.randn(options.positions, size, generator=generator) * spread * size**0.5
    model = load_model(options.model).eval()
    batches = text_batches(options.data, load_tokenizer(options.model), None, 256)
    hidden = hidden_states(model, batches, options.positions)
    return model.get_output_embeddings().weight.detach().clone(), hidden


def screens(head: nn.Linear, hidden: Tensor, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Head]]:
    """The requested modes of screening, each with its own calibration."""
    parts = calibration.parted(head, hidden, quiet)
    for name, make in {
        "screen fast": lambda: calibration.fast(head, parts, None, 0.999, quiet),
        "screen exact, calibrated": lambda: calibration.exact(head, parts, "calibrated", None, quiet),
        "screen exact, proof": lambda: calibration.exact(head, parts, "proof", None, quiet),
    }.items():
        if not wanted(name):
            continue
        start = time.perf_counter()
        made = make()
        seconds, settings = time.perf_counter() - start, made.settings
        weight = head.weight.detach()
        read = made.bytes_read + settings.candidates * weight[0].nbytes
        step = partial(best_of, ScreenedLinear.of(weight, made))
        search = made.search
        index = search.scan._index.codes.size() + sum(part.nbytes for part in search.rounds)
        held = weight.nbytes + sum(own.nbytes for own in made.buffers()) + index
        yield f"{name} ({settings.bits} bits, {settings.candidates} rows)", Head(step, read, held, seconds)


def best_of(head: ScreenedLinear, hidden: Tensor) -> Tensor:
    """The best token `(positions,)` at hidden states `(positions, hidden)`."""
    return head.best(hidden)[0][:, 0]


def heads(weight: Tensor, hidden: Tensor, threads: int, only: list[str]) -> dict[str, Head]:
    """All methods whose name begins with one of `only`; clusters up to the first that reaches the screen's recall."""
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight.data = weight
    tried = hidden[-500:]
    best = torch.cat([head(some).argmax(-1) for some in tried.split(50)])
    found = dict(torch_heads(weight))

    def wanted(name: str) -> bool:
        return not only or any(name.startswith(one) or one.startswith(name) for one in only)

    if wanted("onnxruntime"):
        found |= onnx_heads(weight, threads)
    if wanted("screen"):
        found |= dict(screens(head, hidden, wanted))
    if wanted("RaBitQ"):
        found |= {f"RaBitQ, {digits} bits": built(lambda d=digits: rabitq(weight, d)) for digits in RABITQ_DIGITS}
    if wanted("SVD"):
        found |= {f"SVD, rank {rank}": built(lambda r=rank: low_rank(weight, hidden[:3000], r)) for rank in RANKS}
    if wanted("clusters"):
        for name, one in clustered(weight):
            found[name] = one
            if recall(one, tried, best) >= 0.999:
                break
            found.pop(name) if name != "clusters, 256 probed" else None
    return found


def recall(head: Head, hidden: Tensor, best: Tensor) -> float:
    """The share of positions where a head finds what the dense head finds."""
    found = torch.cat([head.step(one) for one in hidden.split(1)])
    return float((found == best).float().mean())


def interleaved(found: dict[str, Head], hidden: Tensor, batch: int, repeats: int, between: Tensor) -> dict[str, float]:
    """Median milliseconds of a step at a batch size; every repeat takes other positions, the same for all methods.

    All of `between` is read before a step; if there is nothing in it, a step that is not timed comes before it.
    """
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(repeats + 2):
        some = hidden[torch.arange(turn * batch, (turn + 1) * batch) % len(hidden)]
        for name, head in found.items():
            between.sum() if len(between) else head.step(some.flip(0))
            start = time.perf_counter()
            head.step(some)
            if turn > 1:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


@torch.no_grad()
def measure_heads(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one head."""
    weight, hidden = states(options)
    test = hidden[len(hidden) * 3 // 4 :]
    found = heads(weight, hidden, options.threads, options.only)
    best = torch.cat([found["torch fp32"].step(some) for some in test[: options.recall_positions].split(16)])
    metrics: dict[str, Any] = {
        name: {
            "recall": recall(head, test[: options.recall_positions], best),
            "bytes_read": head.bytes_read,
            "bytes_held": head.bytes_held,
            "build_seconds": round(head.build_seconds, 1),
            "milliseconds": {},
            "milliseconds_warm": {},
        }
        for name, head in found.items()
    }
    for key, read in (("milliseconds", options.between), ("milliseconds_warm", 0)):
        between = torch.zeros(int(read * 1e6) // 4)
        for batch in options.batch_sizes:
            for name, milliseconds in interleaved(found, test, batch, options.repeats, between).items():
                metrics[name][key][str(batch)] = round(milliseconds, 4)
    return {"shape": list(weight.shape), "heads": metrics}


@torch.no_grad()
def measure_items(options: argparse.Namespace) -> dict[str, Any]:
    """The exact best `--best` rows of many short ones: screened in mode "exact" and dense, in turns."""
    weight, hidden = states(options)
    rows = nn.Linear(weight.shape[1], 1, bias=False)
    rows.weight, rows.out_features = nn.Parameter(weight, requires_grad=False), len(weight)
    parts, k = calibration.parted(rows, hidden, quiet), options.best
    found: dict[str, Any] = {"shape": list(weight.shape), "best": k, "heads": {}}
    for certificate in CERTIFICATES:
        made = calibration.exact(rows, parts, certificate, None, quiet)
        head = ScreenedLinear.of(weight, made)
        times: dict[str, list[float]] = {"dense": [], "screened": []}
        same = certain = 0
        for some in parts.test.hidden[: options.recall_positions].split(1):
            start = time.perf_counter()
            dense = top_k(F.linear(some, weight), k)
            middle = time.perf_counter()
            own = head.best(some, k)[0]
            times["screened"].append(1e3 * (time.perf_counter() - middle))
            times["dense"].append(1e3 * (middle - start))
            same, certain = same + bool((own == dense).all()), certain + (head.candidates(some, k, k) is not None)
        found["heads"][certificate] = {
            "bits": made.settings.bits, "bytes_read": made.bytes_read, "identical": same, "certain": certain,
            "of": len(times["dense"]), "milliseconds": {name: statistics.median(all_) for name, all_ in times.items()},
        }  # fmt: skip
    return found


class NoHead(nn.Linear):
    """Returns the same logits for any input: a step with a head that costs nothing."""

    kept: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.kept is None or len(self.kept) != len(hidden):
            self.kept = super().forward(hidden[:, -1:])
        return self.kept


def both(options: argparse.Namespace) -> tuple[dict[str, Any], Any, dict[str, list[str]]]:
    """The dense and the screened model, the tokenizer, and prompts by kind."""
    tokenizer = load_tokenizer(options.model)
    tokenizer.padding_side = "left"
    prompts: dict[str, list[str]] = {}
    for line in Path(options.prompts).read_text(encoding="utf-8").splitlines():
        prompts.setdefault(json.loads(line)["kind"], []).append(json.loads(line)["prompt"])
    models = {"dense": load_model(options.model, dtype="float32"), "screened": load_model(options.screened)}
    return models, tokenizer, prompts


def settings_of(model: Any) -> dict[str, Any]:
    """The screen of a model, with the name of its text instead of a path."""
    settings = model.screen.settings
    return {**asdict(settings), "data": Path(settings.data).name}


@torch.no_grad()
def measure_texts(options: argparse.Namespace) -> dict[str, Any]:
    """How many greedy tokens are the dense head's, by kind of text."""
    models, tokenizer, prompts = both(options)
    found = {kind: identical(models, tokenizer, some, options) for kind, some in prompts.items()}
    screened = models["screened"]
    return {
        "screening": settings_of(screened),
        "identical": found,
        "dense_steps": {"tokens": screened.whole, "of": screened.steps},
    }


@torch.no_grad()
def measure_generation(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of one sequence, three models in turns."""
    models, tokenizer, prompts = both(options)
    models["no head"] = load_model(options.model, dtype="float32")
    models["no head"].get_output_embeddings().__class__ = NoHead
    rates = speeds(models, tokenizer, [some[0] for some in prompts.values()], options)
    return {"screening": settings_of(models["screened"]), "tokens_per_second": rates}


def written(model: Any, tokenizer: Any, prompts: list[str], tokens: int) -> Tensor:
    """A model's greedy continuations: `(prompts, tokens)`."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    whole = model.eval().generate(
        **inputs, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id
    )
    return whole[:, -tokens:]


def identical(
    models: dict[str, Any], tokenizer: Any, prompts: list[str], options: argparse.Namespace
) -> dict[str, int]:
    """How many tokens are the dense head's before a text first differs: later tokens belong to a different text."""
    same = total = 0
    compare = followed if models["screened"].screen.settings.mode == "exact" else compared
    step = 1 if compare is followed else options.batch
    for start in range(0, len(prompts), step):
        for equal in compare(models, tokenizer, prompts[start : start + step], options.tokens).tolist():
            first = equal.index(False) if False in equal else len(equal)
            same, total = same + first, total + min(first + 1, len(equal))
    return {"tokens": same, "of": total}


def compared(models: dict[str, Any], tokenizer: Any, prompts: list[str], tokens: int) -> Tensor:
    """Which tokens `(prompts, tokens)` of two texts, each written by one of the models, are the same."""
    dense, own = (written(models[name], tokenizer, prompts, tokens) for name in ("dense", "screened"))
    return dense == own


def followed(models: dict[str, Any], tokenizer: Any, prompts: list[str], tokens: int) -> Tensor:
    """Which tokens `(1, tokens)` of the screened model's text the dense head chooses at the same hidden states."""
    model, chosen = models["screened"], []
    ends = torch.tensor(model.generation_config.eos_token_id).reshape(-1)  # `written` ignores ends of text

    def choose(head: Any, inputs: tuple[Tensor], _: Tensor) -> None:
        logits = F.linear(inputs[0][:, -1:], head.weight, head.bias)[0]
        chosen.append(logits.index_fill(1, ends, -torch.inf).argmax(-1))

    watch = model.get_output_embeddings().register_forward_hook(choose)
    own = written(model, tokenizer, prompts, tokens)
    watch.remove()
    return own == torch.cat(chosen)


def speeds(models: dict[str, Any], tokenizer: Any, prompts: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Median tokens per second with one sequence."""
    rates: dict[str, list[float]] = {name: [] for name in models}
    for prompt in [prompts[0], *prompts * ROUNDS]:  # the first run is a warm-up
        for name, model in models.items():
            start = time.perf_counter()
            written(model, tokenizer, [prompt], options.tokens)
            rates[name].append(options.tokens / (time.perf_counter() - start))
    return {name: round(statistics.median(values[1:]), 2) for name, values in rates.items()}


def table(metrics: dict[str, Any]) -> str:
    """The figures of `head` as Markdown; written beside the result file, never by hand."""
    kinds = {"milliseconds": "cold", "milliseconds_warm": "warm"}
    batches = list(next(iter(metrics["heads"].values()))["milliseconds"])
    columns = [f"ms, batch {batch}, {kind}" for batch in batches for kind in kinds.values()]
    lines = ["| head | recall | MB read | build, s | " + " | ".join(columns) + " |"]
    lines.append("| --- |" + " ---: |" * (3 + len(columns)))
    for name, one in sorted(metrics["heads"].items(), key=lambda item: item[1]["milliseconds"][batches[0]]):
        figures = [f"{one['recall']:.2%}", f"{one['bytes_read'] / 1e6:.1f}", f"{one['build_seconds']:.0f}"]
        figures += [f"{one[key][batch]:.2f}" for batch in batches for key in kinds]
        lines.append(f"| {name} | " + " | ".join(figures) + " |")
    return "\n".join(lines) + "\n"


WHAT = {"head": measure_heads, "items": measure_items, "generation": measure_generation, "texts": measure_texts}


def public(options: argparse.Namespace) -> dict[str, Any]:
    """The options without local paths: models and files by their names."""
    found = {key: value for key, value in vars(options).items() if key != "out"}
    return {key: Path(value).name if key in PLACES and value else value for key, value in found.items()}


def recorded(name: str, options: argparse.Namespace, measure: Callable[[argparse.Namespace], Any]) -> Any:
    """The measurements, written to `options.out` with their provenance."""
    started, start = utc_now(), time.monotonic()
    metrics = measure(options)
    record = {
        **provenance(seed=SEED, sources=[options.data] if options.data else []),
        "started_at": started,
        "wall_seconds": round(time.monotonic() - start, 1),
    }
    Result(name, public(options), metrics, record).write(options.out)
    return metrics


def main() -> None:
    """Parse the command line, measure, write the result file and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=list(WHAT))
    parser.add_argument("--model")
    parser.add_argument("--data", help="text: hub id or local file (head)")
    parser.add_argument(
        "--shape", type=int, nargs=2, metavar=("H", "V"), help="random rows in place of a model (head, items)"
    )
    parser.add_argument("--screened", help="folder of the screened model (generation, texts)")
    parser.add_argument("--prompts", help="JSON lines with the field prompt (generation, texts)")
    parser.add_argument("--positions", type=int, default=12_000)
    parser.add_argument("--recall-positions", type=int, default=1500)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--best", type=int, default=10, help="rows that are asked for (items)")
    parser.add_argument("--tokens", type=int, default=72, help="per prompt (generation, texts)")
    parser.add_argument("--batch", type=int, default=20, help="prompts at once, (texts)")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--between", type=float, default=400, help="MB read before a step, as a backbone does (head)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="methods, by how their names begin")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    metrics = recorded(f"screening-{options.what}", options, WHAT[options.what])
    text = table(metrics) if options.what == "head" else json.dumps(metrics, indent=2) + "\n"
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
