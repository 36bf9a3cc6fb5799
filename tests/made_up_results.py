"""Complete result files of protocols that nobody ran, in the shape that `protocol run` writes."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from codehead.lab.result import Result

HIDDEN, VOCABULARY, MINIMAL = 160, 8192, 13
SEEDS = (0, 1, 2)
HOSTILE = "<script>document.body.innerHTML = 'gone'</script> & \x00\x07\u202e `|` **" + "w" * 300
PROMPTS = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName three <b>primary</b> colours & say why.\n\n### Response:\n",
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\nShorten the text.\n\n"
    "### Input:\nThe cat sat on the mat for a very long time.\n\n### Response:\n",
)
MACHINE = {
    "codehead": "0.1.0",
    "packages": {"torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6"},
    "python": "3.11.7",
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "hardware": {"cpu": "A processor", "cores": 2, "threads": 1, "gpu": None},
    "data": [{"name": "alpaca.json", "sha256": "ab" * 32, "bytes": 22_773_992}],
    "backbone": [{"name": "model.safetensors", "sha256": "cd" * 32, "bytes": 15_000_000}],
}
MEASURED = {
    "git": {"commit": "fedcba9876543210fedcba9876543210fedcba98", "dirty": False},
    "hardware": {"cpu": "Another processor", "cores": 4, "threads": 2, "gpu": None},
    "at": "2026-02-01T08:30:00+00:00",
}
TRAINED = {key: MACHINE[key] for key in ("git", "hardware")} | {"started_at": "2025-12-24T18:00:00+00:00"}
ENCODER = {"name": "minilm", "layers": 6, "sha256": "ef" * 32, "comparable": False}


def head(design: str, bits: int, width: int = 0, loss: str = "bitwise") -> dict[str, Any]:
    """A decision as results describe it."""
    kind = "mtl" if width else "linear"
    return {"design": design, "bits": bits, "head": kind, "width": width, "loss": loss, "decoder": "likelihood"}


CELLS: dict[int, dict[str, dict[str, Any] | None]] = {
    0: {"softmax": None, "minimal": head("minimal", 13), "codeword": head("minrandom", 50, loss="codeword")},
    1: {
        "softmax": None,
        "minimal": head("minimal", 13),
        "minrandom-50": head("minrandom", 50),
        "minimal-mtl": head("minimal", 13, 80),
        "minrandom-50-mtl": head("minrandom", 50, 80),
    },
    2: {"softmax": None}
    | {f"minimal-{width}": head("minimal", 13, width) for width in (20, 80, 160)}
    | {f"minrandom-{width}": head("minrandom", 50, width) for width in (20, 80, 160)},
    3: {"softmax": None, "n-13": head("minimal", 13, 80)}
    | {f"n-{bits}": head("minrandom", bits, 80) for bits in (25, 50, 75, 100)},
    4: {"softmax": None, "minrandom": head("minrandom", 50, 80), "longer": head("minrandom", 100, 80)},
}
SETTINGS = {0: ("1.2M", "2.4M"), 1: ("",), 2: ("",), 3: ("",), 4: ("opt", "qwen2", "llama")}


def write_protocol(folder: Path, paper: int) -> Path:
    """Results and timings of the paper's protocol 1 to 4 in small, or with 0 of pretraining without answers."""
    for setting in SETTINGS[paper]:
        for cell in CELLS[paper]:
            for seed in SEEDS:
                key = "--".join(part for part in (setting, cell, f"seed-{seed}") if part)
                made_up(paper, setting, cell, seed).write(folder / f"{key}.json")
        if paper:
            timing(paper, setting).write(folder / "timing" / f"{setting or 'all'}.json")
    return folder


def made_up(paper: int, setting: str, cell: str, seed: int) -> Result:
    """One result; the same arguments give the same numbers."""
    chance = random.Random(f"{paper} {setting} {cell} {seed}")
    decision = CELLS[paper][cell]
    return Result(
        f"made-up-{paper}/{setting}/{cell}/seed-{seed}",
        {
            "protocol": f"made-up-{paper}",
            "description": "Heads that nobody trained, to see what a report makes of them.\n",
            "paper": paper or None,
            "cell": cell,
            "setting": setting,
            "seed": seed,
            "reference": "softmax",
            "split": {"validation": 0.05, "test": 0.05},
            "run": {"model": {"backbone": setting or "opt"} if paper else {"model_type": "gpt2"}},
            "backbone": None,
        },
        _metrics(decision, chance, with_answers=bool(paper)),
        {
            **MACHINE,
            "backbone_training": TRAINED,
            "measured": MEASURED,
            "seed": seed,
            "started_at": f"2026-01-0{seed + 1}T12:00:00+00:00",
            "wall_seconds": 200.0 + seed,
        },
    )


def timing(paper: int, setting: str) -> Result:
    """The times of all cells of one setting."""
    cells = {}
    for number, cell in enumerate(CELLS[paper]):
        repeats = [1.0 + 0.1 * number + 0.01 * turn for turn in range(5)]
        cells[cell] = {
            "answer_seconds": repeats[2],
            "answer_repeats": repeats,
            "tokens_per_second": 500 / repeats[2],
            "tokens_per_second_repeats": [500 / value for value in repeats],
            "dtype": "bfloat16",
        }
    metrics = {"cells": cells, "prompts": 32, "new_tokens": 32, "batch_size": 16, "seed": 0, "repeats": 5}
    return Result(f"made-up-{paper}/timing", {"setting": setting}, metrics, MACHINE)


def _metrics(decision: dict[str, Any] | None, chance: random.Random, with_answers: bool) -> dict[str, Any]:
    skill = 0.30 if decision is None else 0.12 + 0.03 * math.log2(decision["bits"] / 8) + 0.0002 * decision["width"]
    top1 = skill + chance.uniform(-0.01, 0.01)
    start, end = (9.0, 4.0) if decision is None or decision["loss"] == "codeword" else (0.69, 0.5 - skill / 4)
    metrics = {
        "test": _scores(decision, top1, chance),
        "validation": _scores(decision, top1, chance),
        "size": _size(decision),
        "decision": decision,
        "model_parameters": 4_000_000,
        "train_seconds": 200.0,
        "history": [
            {"step": step, "loss": end + (start - end) * math.exp(-step / 40) + chance.uniform(-0.01, 0.01)}
            for step in range(10, 210, 10)
        ],
    }
    return metrics | ({"answers": _answers(top1, chance)} if with_answers else {})


def _scores(decision: dict[str, Any] | None, top1: float, chance: random.Random) -> dict[str, Any]:
    bits = (
        []
        if decision is None
        else [0.98 - 0.03 * min(i, 12) + chance.uniform(0, 0.02) for i in range(decision["bits"])]
    )
    return {
        "tokens": 85_935,
        "top1": top1,
        "top5": 1.6 * top1,
        "perplexity": math.exp(1 / top1),
        "bits_per_byte": 0.4 / top1,
        "node_loss": 0.4 if bits else None,
        "node_losses": [0.4] * len(bits) or None,
        "bit_accuracy": sum(bits) / len(bits) if bits else None,
        "bit_accuracies": bits or None,
        "decoder": "likelihood",
    }


def _size(decision: dict[str, Any] | None) -> dict[str, int]:
    if decision is None:
        parameters, codebook = HIDDEN * VOCABULARY, 0
    else:
        bits, width = decision["bits"], decision["width"]
        parameters = bits * (HIDDEN * width + width) if width else bits * HIDDEN
        codebook = VOCABULARY * math.ceil(bits / 8)
    return {
        "head_parameters": parameters,
        "bytes_stored": 4 * parameters + codebook // 32,
        "bytes_resident": 4 * parameters + codebook,
        "bytes_read_per_token": 4 * parameters + codebook,
        "codebook_bytes": codebook,
    }


def _answers(top1: float, chance: random.Random) -> dict[str, Any]:
    f1 = 0.2 + top1 + chance.uniform(-0.01, 0.01)
    texts = (
        "Red, yellow and blue.",
        HOSTILE if top1 < 0.2 else "",
    )
    return {
        "prompts": 128,
        "new_tokens": 48,
        "batch_size": 32,
        "mean_new_tokens": 31.2,
        "bertscore": {"precision": f1 + 0.02, "recall": f1 - 0.02, "f1": f1, "encoder": ENCODER},
        "samples": [
            {"prompt": prompt, "reference": "Red, yellow, blue: no others mix to them.", "answer": text}
            for prompt, text in zip(PROMPTS, texts, strict=True)
        ],
    }
