"""The command in forked processes: lines that it must refuse, and runs that are killed and go on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from small_runs import CORRECTED, TEXT, WORDS
from transformers import GPT2Config, GPT2LMHeadModel
from workers import FORK, HANG, RAISED, Verdict, judged, quiet

import codehead.conversion
import codehead.lab.protocols.runner  # here, so that no fork has to import them
import codehead.screening.build
import codehead.training.run  # noqa: F401
from bad_calls import bad_calls, prepare, words
from codehead import __main__ as cli
from codehead.cli.checkpoints import attach
from codehead.training.tokenizer import train_bpe

SECONDS = 300
"""Until a command is said to hang."""
REFUSED, ACCEPTED = "refused with one message", "ACCEPTED"
EQUAL, EARLY, OTHER = "resumed to the same files", "ended before it was killed, with the same files", "OTHER FILES"


def command(*arguments: str) -> tuple[int, str]:
    """The exit status of the command, and what it says in errors."""
    sys.argv, told = ["codehead", *arguments], io.StringIO()
    with redirect_stderr(told), redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as leave:
            return int(leave.code or 0), told.getvalue()
    return 0, told.getvalue()


def write_models(place: Path) -> None:
    """A text, a tiny stock model and one with a decision layer."""
    (place / "text.txt").write_text(TEXT)
    records = [{"text": " ".join(WORDS[(i * j) % 17] for j in range(1, 40)) + "."} for i in range(1, 41)]
    (place / "stories.jsonl").write_text("\n".join(map(json.dumps, records)))
    tokenizer = train_bpe([TEXT], 270)
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, vocab_size=272, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    attach(str(place / "model"), place / "coded", bits=20)


# --- lines that cannot succeed


def fuzz_calls(place: Path, count: int, seed: int) -> list[Verdict]:
    """How so many of the bad calls are met, drawn by the seed."""
    lines = [line for of_kind in bad_calls().values() for line in of_kind]
    chosen = Random(seed).sample(lines, min(count, len(lines)))
    places = {"here": place / "here", "weights": place / "model" / "model.safetensors", "text": place / "text.txt"}
    places |= {"model": place / "model", "coded": place / "coded"}
    done = judged([place], _prepare, SECONDS)
    return [verdict for verdict in done if verdict.name == RAISED] or judged(
        [(places, line) for line in chosen], _call, SECONDS
    )


def _prepare(place: Path) -> Verdict:
    write_models(place)
    (place / "here").mkdir()
    prepare(place / "here", place / "model", place / "coded")
    return Verdict("prepared")


def _call(job: tuple[dict[str, Path], str]) -> Verdict:
    places, line = job
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        status, told = command(*words(line, places))
        left = [*Path(empty).iterdir(), *(places["here"] / "new").glob("model.safetensors")]
        os.chdir(places["here"])
    detail = f"{line[:200]}: status {status}, left {left}; {told[-500:]}"
    if "Traceback" in told or status not in (0, 2):
        return Verdict(RAISED, detail)
    return Verdict(ACCEPTED if status == 0 or left or "Error" not in told else REFUSED, detail)


# --- runs that are killed


@dataclass(frozen=True)
class Kill:
    """A run that is killed, perhaps more than once, then left to end."""

    run: str
    """A key of RUNS."""
    number: int
    moments: tuple[float, ...]
    """When to kill it, as shares of the time of a whole run."""


FINETUNING: dict[str, Any] = {
    "data": {"train": "stories.jsonl", "validation_fraction": 0.2, "block_size": 32},
    "training": {
        "max_steps": 12,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
    },
    "decision": {"code": "minrandom", "bits": 20},
    "adapt": "full",
}
TUNED = {
    **FINETUNING,
    "adapt": "lora",
    "decision": {**CORRECTED, "code": "itq"},
    "distil": {"steps": 5, "tokens": 300},
    "lora": {"dropout": 0.3},
    "calibrate": {"tokens": 500},
    "int4": True,
}
PROTOCOL = {
    "name": "tiny",
    "reference": "softmax",
    "seeds": [0],
    "split": {"validation": 0.2, "test": 0.2},
    "batch_size": 4,
    "backbones": {
        "gpt2": {
            "model": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
            "tokenizer": {"train": "bpe", "vocab_size": 270},
            "data": {"train": "${FOLDER}/stories.jsonl", "block_size": 16},
            "training": {"max_steps": 4, "save_steps": 1, "use_cpu": True},
        }
    },
    "base": {
        "model": {"backbone": "gpt2"},
        "data": {"train": "${FOLDER}/stories.jsonl", "block_size": 32},
        "training": {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "use_cpu": True},
    },
    "cells": {"softmax": {}, "coded": {"decision": {"code": "minrandom", "bits": 12}}},
    "answers": None,
    "timing": None,
}
RUNS: dict[str, tuple[str, ...]] = {
    "finetune": ("finetune", "--config", "plain.yaml", "--model", "model"),
    "finetune, distilled": ("finetune", "--config", "tuned.yaml", "--model", "model"),
    "convert": ("convert", "model", "--data", "stories.jsonl", "--bits", "32", "--steps", "60", "--tokens", "2000"),
    "screen": ("screen", "model", "--data", "stories.jsonl", "--recall", "0.9", "--positions", "400", "--bits", "64"),
    "protocol": ("protocol", "run", "tiny.yaml"),
}
TIMES = re.compile(
    r"^at$|^checksum$|runtime|per_second|seconds|started_at|finished_at|output_dir|total_flos|memory|peak|path|sha256"
)
"""Keys of what may differ from run to run."""


def fuzz_kills(place: Path, count: int, seed: int) -> list[Verdict]:
    """Whether runs that are killed at moments drawn by the seed come to the same files as whole ones."""
    done = judged([place], _prepare_runs, SECONDS)
    if done[0].name == RAISED:
        return done
    os.chdir(place)
    whole, rng = {run: _whole(run) for run in RUNS}, Random(seed)
    kills = []
    for number in range(count):
        moments = tuple(rng.uniform(0.02, 0.95) for _ in range(1 + number % 2))
        kills.append(Kill(list(RUNS)[number % len(RUNS)], number, moments))
    return [_killed(kill, *whole[kill.run]) for kill in kills]


def _prepare_runs(place: Path) -> Verdict:
    write_models(place)
    for name, content in {"plain": FINETUNING, "tuned": TUNED, "tiny": PROTOCOL}.items():
        (place / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return Verdict("prepared")


def _whole(run: str) -> tuple[dict[str, str], float]:
    """The files of an uninterrupted run, and its seconds."""
    start = time.monotonic()
    process = _start(run, Path(f"whole {run}"))
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{run}: {Path(f'whole {run}.log').read_text()}")
    return _files(Path(f"whole {run}")), time.monotonic() - start


def _killed(kill: Kill, whole: dict[str, str], seconds: float) -> Verdict:
    out = Path(f"{kill.run} {kill.number}")
    for moment in kill.moments:
        process = _start(kill.run, out)
        process.join(moment * seconds)
        alive = process.exitcode is None
        process.kill()
        process.join()
    process = _start(kill.run, out)
    process.join(SECONDS)
    detail = f"{out}, killed at {', '.join(f'{moment:.2f}' for moment in kill.moments)}"
    if process.exitcode is None:
        process.kill()
        return Verdict(HANG, detail)
    found = _files(out)
    differs = sorted(name for name in {*found, *whole} if found.get(name) != whole.get(name))
    if differs:
        return Verdict(OTHER, f"{detail}: {differs}; {Path(f'{out}.log').read_text()[-500:]}")
    return Verdict(EQUAL if alive else EARLY, detail)


def _start(run: str, out: Path) -> BaseProcess:
    process = FORK.Process(target=_run, args=(run, out))
    process.start()
    return process


def _run(run: str, out: Path) -> None:
    quiet()
    os.environ["FOLDER"] = os.getcwd()
    status, told = command(*RUNS[run], "--out", str(out))
    Path(f"{out}.log").write_text(told)
    os._exit(status)


def _files(folder: Path) -> dict[str, str]:
    """What is in a folder, by the content of files but for times; checkpoints on the way and stores are not counted."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_file() and "checkpoints" not in name and "store" not in name:
            if file.suffix == ".json":
                found |= dict(_timeless(json.loads(file.read_text()), name))
            else:
                found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _timeless(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """The values in a JSON file by their keys, but for times and places."""
    inner = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else None
    if inner is None:
        yield name, str(value)
    for key, values in inner or ():
        if not TIMES.search(str(key)):
            yield from _timeless(values, f"{name}/{key}")
