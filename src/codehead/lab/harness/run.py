"""Tasks of lm-evaluation-harness on any checkpoint: its own `hf` model, tasks and metrics, as a Result.

Gao et al., https://github.com/EleutherAI/lm-evaluation-harness. The harness reads `.logits` and calls `generate`,
which a coded model has like any other; nothing of it is changed here.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from numbers import Real
from typing import Any

from codehead.errors import ConfigurationError
from codehead.lab.harness.tasks import errors_only, load_tasks
from codehead.lab.measure import public_name
from codehead.lab.result import Result
from codehead.models import is_coded
from codehead.training.data import check_vocabulary
from codehead.training.model import default_device, load_model
from codehead.training.provenance import provenance, utc_now
from codehead.training.quiet import library_bars_hidden
from codehead.training.tokenizer import load_tokenizer

SEED = 1234
"""The seed by which the harness draws few-shot examples unless told otherwise."""

RESAMPLES = 1000
"""Bootstrap samples behind the standard error of a metric that is not a mean."""

PORTION = 16
"""Batches that are answered between two reports of progress."""

REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")

Progress = Callable[[str, int, int], None]


def run_tasks(
    model_name: str,
    tasks: str | Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    dtype: str = "auto",
    tokenizer_name: str | None = None,
    seed: int = SEED,
    progress: Progress | None = None,
) -> Result:
    """Metrics of a hub id or local folder, coded or not, on tasks of the harness.

    `tasks` are its names, groups or patterns, and local task files or folders of them; `limit` is documents per task.
    `num_fewshot` holds for every task whose own is not 0. `progress` is called with (stage, requests answered,
    requests in all). In the metrics, a number that is undefined or infinite is None.
    """
    if find_spec("lm_eval") is None:
        raise ConfigurationError(
            "tasks need lm-evaluation-harness, which is not installed; run: pip install 'codehead[harness]'"
        )
    import lm_eval
    from transformers import set_seed

    started, start = utc_now(), time.monotonic()
    specs = [tasks] if isinstance(tasks, str) else list(tasks)
    report = progress or (lambda stage, done, total: None)
    tokenizer = load_tokenizer(tokenizer_name or model_name)
    with _bars_hidden(), redirect_stdout(sys.stderr):  # the harness prints, and --json owns stdout
        report("loading tasks and model", 0, 1)
        loaded, files = load_tasks(specs)
        model = load_model(model_name, dtype=dtype).to(default_device())
        check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
        lm = harness_model(model, tokenizer, batch_size)
        for name, task in loaded["tasks"].items():
            _check_task(name, task, lm)
            _set_shots(name, task, num_fewshot, seed)
        set_seed(seed)  # for tasks that sample
        watched = _Watched(lm, report, PORTION * batch_size)
        with _one_process():
            found = lm_eval.evaluate(watched, loaded, limit=limit, bootstrap_iters=RESAMPLES, log_samples=False)
    config = {
        "model": public_name(model_name),
        "decision": dict(model.config.quantization_config) if is_coded(model) else None,
        "tasks": [public_name(spec) for spec in specs],
        "num_fewshot": num_fewshot,
        "limit": limit,
        "batch_size": batch_size,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    sources = dict.fromkeys(str(place) for file in files for place in (file.path, *file.data))
    record = {**provenance(seed=seed, sources=sources), "started_at": started}
    record["packages"]["lm_eval"] = metadata.version("lm_eval")
    record["wall_seconds"] = round(time.monotonic() - start, 3)
    return Result(public_name(model_name), config, _metrics(found), record)


def harness_model(model: Any, tokenizer: Any, batch_size: int = 8) -> Any:
    """The harness's `HFLM` around a loaded model; log-probabilities are formed in float32."""
    from lm_eval.models.huggingface import HFLM

    with errors_only():  # it warns of every model that is handed over loaded
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")


# --- how tasks are run


def _check_task(name: str, task: Any, lm: Any) -> None:
    """Raise ConfigurationError for a task that this command, or this model, cannot run."""
    from lm_eval.models.utils import normalize_gen_kwargs

    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigurationError(
            f"task {name!r} runs code that the model writes; run it with lm-eval, which asks first"
        )
    if getattr(task, "MULTIMODAL", False):
        raise ConfigurationError(f"task {name!r} shows images or sound; choose tasks of text")
    if task.OUTPUT_TYPE == "generate_until":
        new = normalize_gen_kwargs(task.get_config("generation_kwargs") or {}, lm.max_gen_toks)["max_gen_toks"]
        if new >= lm.max_length:
            raise ConfigurationError(
                f"task {name!r} generates up to {new} tokens, but the model takes at most {lm.max_length} with the "
                "prompt; lower generation_kwargs.max_gen_toks in the task file"
            )


def _set_shots(name: str, task: Any, num_fewshot: int | None, seed: int) -> None:
    """How many examples precede a question, and the seed that draws them, by the harness's rules.

    Only, where it would draw from the questions themselves and show one with its answer, ConfigurationError is raised.
    """
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=seed)
    shots = task.get_config("num_fewshot")
    if not shots or not hasattr(task, "sampler"):
        return
    source = task.fewshot_cfg
    if not (source.split or source.samples or task.has_training_docs() or task.has_validation_docs()):
        raise ConfigurationError(
            f"task {name!r} has no documents for {shots} examples but its questions; set its fewshot_split (the split "
            "of the questions will do: the one that is asked is then left out), or omit --num-fewshot"
        )
    room = len(task.sampler.fewshot_docs()) - (source.split == task.config.test_split)
    if shots > room:
        raise ConfigurationError(f"--num-fewshot is {shots}, but task {name!r} has {room} documents to draw from")


class _Watched:
    """The harness's model, asked for a portion of the answers at a time, so that progress can be told.

    Like the harness's own CachingLM it stands before a model, and hands on whatever it does not do itself.
    """

    def __init__(self, lm: Any, report: Progress, portion: int) -> None:
        self.lm, self.report, self.portion = lm, report, portion

    def __getattr__(self, name: str) -> Any:
        return partial(self._answer, name) if name in REQUESTS else getattr(self.lm, name)

    def _answer(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        answers: list[Any] = []
        while len(answers) < len(requests):
            self.report(f"{kind} requests", len(answers), len(requests))
            answers += getattr(self.lm, kind)(requests[len(answers) : len(answers) + self.portion])
        self.report(f"{kind} requests", len(requests), len(requests))
        return answers


@contextmanager
def _bars_hidden() -> Iterator[None]:
    """Hide every bar of tqdm: the harness draws one for each batch of windows, and has no switch for it."""
    from tqdm import tqdm

    begin = tqdm.__init__

    def hidden(bar: Any, *args: Any, **kwargs: Any) -> None:
        begin(bar, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = hidden
    try:
        with library_bars_hidden():
            yield
    finally:
        tqdm.__init__ = begin


@contextmanager
def _one_process() -> Iterator[None]:
    """Keep the harness's bootstrap in this process: it would fork it, threads and all, once for every core."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        del os.environ["DISABLE_MULTIPROC"]
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before


# --- what they say


def _metrics(found: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks, and groups that have a value of their own: version, shots, samples, metrics with standard errors."""
    return {
        "tasks": {name: _record(name, found) for name in found["n-samples"]},
        "groups": {name: _record(name, found) for name in found.get("groups", ())},
    }


def _record(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    values = found["results"][name]
    metrics = {}
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            label = metric if chosen == "none" else key  # the filter that was applied to the answers first
            metrics[label] = {"value": _number(value), "stderr": _number(values.get(f"{metric}_stderr,{chosen}"))}
    return {
        "version": found["versions"].get(name),
        "num_fewshot": found["n-shot"].get(name),
        "samples": values["sample_len"] if "sample_len" in values else max(values["sample_count"].values()),
        "metrics": metrics,
    }


def _number(value: Any) -> float | None:
    """A finite number as JSON has it; None for the harness's "N/A" and for what is not finite."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None
