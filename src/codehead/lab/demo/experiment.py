"""The paper's Protocol 1 in miniature, on text that every Python installation carries.

A small OPT is pretrained with its Softmax head on the documentation strings of the standard library, then
fine-tuned to answer questions about them with five decision layers, each from the same checkpoint, over the
same batches, with the same number of steps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from codehead.errors import CodeheadError, ConfigurationError
from codehead.lab.demo.corpus import SPLITS, read_corpus
from codehead.lab.generation_speed import generation_speed
from codehead.lab.protocols.cells import cell_config
from codehead.lab.protocols.layout import RESULTS, failure_path, result_path
from codehead.lab.protocols.preparation import Context, locate
from codehead.lab.protocols.protocol import Protocol
from codehead.lab.protocols.runner import run_protocol
from codehead.lab.protocols.store import Store
from codehead.lab.result import Result
from codehead.training.model import load_model
from codehead.training.provenance import provenance, utc_now
from codehead.training.quiet import library_bars_hidden
from codehead.training.tokenizer import load_tokenizer

FOLDER = "DEMO"  # the variable that stands for the output folder, so that results hold no local path
BACKBONE = "pretrained"
CELLS: dict[str, dict[str, Any]] = {
    "softmax": {"training": {"learning_rate": 3e-3}},
    "minimal": {"decision": {"code": "minimal"}},
    "minrandom": {"decision": {"code": "minrandom", "bits": 48}},
    "minimal-mtl": {"decision": {"code": "minimal", "head": "mtl", "width": "half"}},
    "minrandom-mtl": {"decision": {"code": "minrandom", "bits": 48, "head": "mtl", "width": "half"}},
}


@dataclass(frozen=True)
class Budget:
    """What the demo may spend. The defaults take about five minutes on two cores."""

    vocabulary: int = 4096  # tokens
    hidden: int = 128
    layers: int = 2
    pretraining_steps: int = 600  # of 8 blocks of 128 tokens
    finetuning_steps: int = 400  # of 16 questions with their answers
    questions: int | None = None  # of the test split to evaluate on; None: all
    timed_prompts: int = 6
    new_tokens: int = 24  # per timed prompt
    repeats: int = 3  # of the timing, the heads taking turns

    @property
    def units(self) -> int:
        """The work in units of about one optimizer step, for a display of the time left."""
        return self.pretraining_steps + len(CELLS) * (self.finetuning_steps + CELL_UNITS) + TIMING_UNITS


CELL_UNITS = 20  # evaluating one head, in optimizer steps
TIMING_UNITS = 60
Progress = Callable[[str, int], None]
"""Called with (what is going on, units of work just done)."""


@library_bars_hidden()
def run_demo(
    out: str | Path, *, seed: int = 0, budget: Budget | None = None, progress: Progress = lambda stage, units: None
) -> Path:
    """Run whatever is not done yet in `out`; returns the folder of result files.

    The same seed gives the same numbers on the same machine, times excepted. Raises ConfigurationError if
    `out` holds another demo, DataError if this Python has no sources of its standard library.
    """
    out, budget = Path(out), budget or Budget()
    progress("reading the documentation strings of this Python", 0)
    heads = protocol(budget, seed)
    _refuse_another(heads, out)
    write_corpus(out / "corpus", budget)
    variables = {FOLDER: str(out)}
    _train(heads, out, variables, budget, progress)
    progress("timing generation", 0)
    time_generation(heads, out, locate(heads, Store(out / "store"), variables), budget)
    progress("done", TIMING_UNITS)
    return out / RESULTS


def write_corpus(folder: Path, budget: Budget) -> None:
    """The text and the questions of every split as JSONL files, unless they are there."""
    if (folder / f"questions-{SPLITS[-1]}.jsonl").is_file():
        return
    corpus = read_corpus()
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        pairs = corpus.pairs[split][: budget.questions if split != "train" else None]
        _write_lines(folder / f"text-{split}.jsonl", [{"text": text} for text in corpus.texts[split]])
        _write_lines(folder / f"questions-{split}.jsonl", [_record(pair) for pair in pairs])


def pretraining(budget: Budget, seed: int) -> dict[str, Any]:
    """The run that trains the backbone with Softmax."""
    return {
        "model": {
            "model_type": "opt",
            "hidden_size": budget.hidden,
            "word_embed_proj_dim": budget.hidden,
            "ffn_dim": 4 * budget.hidden,
            "num_hidden_layers": budget.layers,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "dropout": 0.0,
            "init_std": 0.08,  # 1/√hidden: with the usual 0.02 so small a model starts slowly
            "tie_word_embeddings": False,
        },
        "tokenizer": {"train": "bpe", "vocab_size": budget.vocabulary},
        "data": {"train": f"${{{FOLDER}}}/corpus/text-train.jsonl", "block_size": 128},
        "training": {**_training(budget.pretraining_steps, learning_rate=3e-3), "per_device_train_batch_size": 8},
        "seed": seed,
    }


def protocol(budget: Budget, seed: int) -> Protocol:
    """The fine-tuning of every head from the pretrained checkpoint.

    Learning rates come from the accuracy on the validation split with one seed: between 1e-3 and 3e-3, Softmax did
    better at 3e-3, and the coded heads, tried less thoroughly, no worse at 1e-3. This is a demonstration, not a
    tuned comparison.
    """
    base = {
        "model": {"backbone": BACKBONE},
        "adapt": "full",
        "data": {split: f"${{{FOLDER}}}/corpus/questions-{split}.jsonl" for split in SPLITS} | {"block_size": 64},
        "training": {**_training(budget.finetuning_steps, learning_rate=1e-3), "per_device_train_batch_size": 16},
    }
    backbones = {BACKBONE: pretraining(budget, seed)}
    return Protocol("codehead-demo", base, CELLS, reference="softmax", seeds=(seed,), backbones=backbones, paper=1)


def time_generation(heads: Protocol, out: Path, context: Context, budget: Budget) -> Result:
    """Seconds that every head takes to answer the same questions, and one answer of each; written once."""
    path = out / "generation.json"
    if path.is_file():
        return Result.read(path)
    folders = {cell.name: cell_config(heads, cell, context).output_dir for cell in heads.plan()}
    models = {name: load_model(folder) for name, folder in folders.items()}
    tokenizer = load_tokenizer(folders[heads.reference])
    questions = [json.loads(line) for line in _lines(out / "corpus" / "questions-test.jsonl")]
    prompts = [tokenizer(question["prompt"], return_tensors="pt").input_ids for question in questions]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for prompt in prompts[: budget.timed_prompts]:
        speeds = generation_speed(models, prompt, new_tokens=budget.new_tokens, repeats=budget.repeats)
        for name, speed in speeds.items():
            seconds[name].append(budget.new_tokens / median(speed.repeats))
    metrics = {
        "seconds": {name: sum(values) for name, values in seconds.items()},
        "question": questions[0]["prompt"],
        "expected": questions[0]["completion"].strip(),
        "answers": {name: _answer(model, tokenizer, prompts[0]) for name, model in models.items()},
    }
    config = {"prompts": budget.timed_prompts, "new_tokens": budget.new_tokens, "repeats": budget.repeats}
    result = Result(
        "codehead-demo/generation", config, metrics, {**provenance(seed=heads.seeds[0]), "started_at": utc_now()}
    )
    result.write(path)
    return result


def _refuse_another(heads: Protocol, out: Path) -> None:
    own = {result_path(out, cell).name for cell in heads.plan()}
    if any(path.name not in own for path in (out / RESULTS).glob("*.json")):
        raise ConfigurationError(f"{str(out)!r} holds a demo with another seed; choose another --out")


def _train(heads: Protocol, out: Path, variables: dict[str, str], budget: Budget, progress: Progress) -> None:
    progress("training a tokenizer", 0)
    backbone = _Steps("pretraining with Softmax", progress)

    def report(key: str, status: str) -> None:
        backbone.complete(budget.pretraining_steps)
        if not key.startswith("backbone"):
            progress(f"{key} {status}", CELL_UNITS + (budget.finetuning_steps if status == "reused" else 0))

    def callbacks(key: str) -> list[TrainerCallback]:
        return [backbone if key.startswith("backbone") else _Steps(f"fine-tuning {key}", progress)]

    outcome = run_protocol(heads, out, variables=variables, report=report, callbacks=callbacks)
    if outcome.failed:
        key = outcome.failed[0]
        raise CodeheadError(f"{key} could not be trained; the traceback is in {failure_path(out, key)}")


class _Steps(TrainerCallback):
    """Reports every optimizer step; those of a resumed run at once."""

    def __init__(self, stage: str, progress: Progress) -> None:
        self.stage, self.progress, self.done = stage, progress, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._advance(1)

    def complete(self, steps: int) -> None:
        """Count what is left of `steps`: all of them, if the run was found finished."""
        self._advance(steps - self.done)

    def _advance(self, steps: int) -> None:
        self.done += steps
        self.progress(self.stage, steps)


def _training(steps: int, *, learning_rate: float) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, steps // 15),
        "weight_decay": 0.01,
        "logging_steps": 5,
        "save_steps": 100,
        "save_total_limit": 1,
        "dataloader_pin_memory": False,
    }


@torch.no_grad()
def _answer(model: Any, tokenizer: Any, prompt: torch.Tensor) -> str:
    """The greedy answer to a prompt `(1, length)`, on one line."""
    ids = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=40, pad_token_id=0
    )
    return " ".join(tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True).split())


def _record(pair: dict[str, str]) -> dict[str, str]:
    """A question in a short form: an instruction template of 40 words would cost half of the budget."""
    return {"prompt": f"Question: {pair['instruction']}\nAnswer:", "completion": " " + pair["output"]}


def _write_lines(path: Path, records: list[dict[str, str]]) -> None:
    lines = (json.dumps(record) + "\n" for record in records)
    temporary = path.with_suffix(".tmp")  # the last file, once it is there, says that all are complete
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, path)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
