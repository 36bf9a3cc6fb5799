"""Tasks of lm-evaluation-harness on any checkpoint: its own `hf` model, tasks and metrics, as a Result.

Gao et al., https://github.com/EleutherAI/lm-evaluation-harness. The harness reads `.logits` and calls `generate`,
which a coded model has like any other; the harness is not modified.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from glob import glob
from importlib import metadata
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any
from unittest.mock import patch

from codehead.boundaries import library_bars_hidden
from codehead.errors import ConfigurationError, DataError
from codehead.lab.measure import described, public_name
from codehead.lab.result import Result
from codehead.registry import did_you_mean
from codehead.training.data import check_vocabulary
from codehead.training.model import default_device, load_model
from codehead.training.provenance import provenance, utc_now
from codehead.training.tokenizer import load_tokenizer

SEED = 1234
"""The harness's default seed for drawing few-shot examples."""
RESAMPLES = 1000
"""Bootstrap samples behind the standard error of a metric that is not a mean."""
PORTION = 16
"""Batches between two progress reports."""
REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")

Progress = Callable[[str, int, int], None]


def run_tasks(
    model_name: str,
    tasks: str | Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    tokenizer_name: str | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Result:
    """Metrics of a hub id or local folder, coded or not, on tasks of the harness.

    `tasks` are its names, groups or patterns, and local task files or folders of them; `limit` is documents per task.
    `num_fewshot` holds for every task whose own is not 0. `progress` is called with (stage, requests answered,
    requests in all). In the metrics, a number that is undefined or infinite is None.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigurationError(
            "tasks run in one process here; in several, start the harness itself: accelerate launch -m lm_eval "
            f"--model hf --model_args pretrained={model_name} --tasks NAMES"
        )
    if find_spec("lm_eval") is None:
        raise ConfigurationError(
            "tasks need lm-evaluation-harness, which is not installed; run: pip install 'codehead[harness]'"
        )
    import lm_eval
    from transformers import set_seed

    started, start = utc_now(), time.monotonic()
    specs = [tasks] if isinstance(tasks, str) else list(tasks)
    tokenizer = load_tokenizer(tokenizer_name or model_name)
    with _bars_hidden(), redirect_stdout(sys.stderr):  # the harness prints, and --json owns stdout
        progress("loading tasks and model", 0, 1)
        loaded, files = load_tasks(specs)
        model = load_model(model_name, dtype="auto").to(default_device())
        check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
        lm = harness_model(model, tokenizer, batch_size)
        for name, task in loaded["tasks"].items():
            _check_task(name, task, lm)
            _set_shots(name, task, num_fewshot)
        set_seed(SEED)  # for tasks that sample
        watched = _Watched(lm, progress, PORTION * batch_size)
        with patch.dict(os.environ, DISABLE_MULTIPROC="1"):  # its bootstrap would fork, once for every core
            found = lm_eval.evaluate(watched, loaded, limit=limit, bootstrap_iters=RESAMPLES, log_samples=False)
    config = {
        **described(model, model_name),
        "tasks": [public_name(spec) for spec in specs],
        "num_fewshot": num_fewshot,
        "limit": limit,
        "batch_size": batch_size,
    }
    sources = dict.fromkeys(str(place) for file in files for place in (file.path, *file.data))
    record = {**provenance(seed=SEED, sources=sources), "started_at": started}
    record["packages"]["lm_eval"] = metadata.version("lm_eval")
    record["wall_seconds"] = round(time.monotonic() - start, 3)
    return Result(public_name(model_name), config, _metrics(found), record)


def harness_model(model: Any, tokenizer: Any, batch_size: int = 8) -> Any:
    """The harness's `HFLM` around a loaded model; log-probabilities are formed in float32."""
    from lm_eval.models.huggingface import HFLM

    with errors_only():  # it warns about every model that is passed already loaded
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
        raise ConfigurationError(f"task {name!r} uses images or sound; choose text tasks")
    if task.OUTPUT_TYPE == "generate_until":
        new = normalize_gen_kwargs(task.get_config("generation_kwargs") or {}, lm.max_gen_toks)["max_gen_toks"]
        if new >= lm.max_length:
            raise ConfigurationError(
                f"task {name!r} generates up to {new} tokens, but the model takes at most {lm.max_length} with the "
                "prompt; lower generation_kwargs.max_gen_toks in the task file"
            )


def _set_shots(name: str, task: Any, num_fewshot: int | None) -> None:
    """How many examples precede a question, and the seed that draws them, by the harness's rules.

    But ConfigurationError is raised where it would draw from the questions themselves and show one with its answer.
    """
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=SEED)
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
    """The harness's model, asked for a part of the answers at a time, so that progress can be shown.

    Like the harness's own CachingLM, it wraps a model and passes on everything else.
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

    with patch.object(tqdm, "__init__", hidden), library_bars_hidden():
        yield


# --- results


def _metrics(found: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks, and groups with values of their own: version, shots, samples, metrics with standard errors."""
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


# Finding tasks: the harness's own by name, or local files with the data that they name.


SUFFIXES = (".yaml", ".yml")
LOCAL_FORMATS = ("json", "csv", "text", "parquet", "arrow")
"""Values of `dataset_path` for which `datasets` reads local files."""


@dataclass(frozen=True)
class TaskFile:
    """A local task or group: its path, its content, and the data files that it names."""

    path: Path
    config: dict[str, Any]
    data: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the task or group."""
        return self.config["group"] if "group" in self.config else self.config["task"]


def load_tasks(specs: Sequence[str]) -> tuple[dict[str, Any], list[TaskFile]]:
    """Tasks and groups as `lm_eval.evaluate` takes them, and the local files that they came from.

    A spec is a name, group or pattern of the harness, a local task file, or a folder of them; the members of a local
    group may be beside it. A local task takes precedence over one of the same name in the harness.
    Raises ConfigurationError for unknown names and bad files, DataError for missing data.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import TaskIndex

    if not specs:
        raise ConfigurationError("--tasks names no task")
    local = {spec: read_task_files(Path(spec).expanduser()) for spec in specs if _is_local(spec)}
    given = [file for found in local.values() for file in found]
    groups = [file for file in given if "group" in file.config]
    files = _by_name([*given, *(file for group in groups for file in read_task_files(group.path.parent))])
    # The index of the harness's own names takes seconds: it reads 14,000 files.
    manager = TaskManager(include_defaults=len(local) < len(specs) or _name_others(groups, files))
    for name, file in files.items():
        manager.task_index[name] = TaskIndex.entry_from_config(file.config)
    wanted = [[file.name for file in local[spec]] if spec in local else find_names(spec, manager) for spec in specs]
    parts = [_load(name, manager) for name in dict.fromkeys(name for names in wanted for name in names)]
    loaded = {kind: {k: v for part in parts for k, v in part[kind].items()} for kind in ("tasks", "groups")}
    return loaded, [file for name, file in files.items() if name in loaded["tasks"] | loaded["groups"]]


def _name_others(groups: Sequence[TaskFile], files: Mapping[str, TaskFile]) -> bool:
    """Whether some group has a member that is not among the local `files`."""
    members = [member for group in groups for member in group.config.get("task") or []]
    given = [member if isinstance(member, Mapping) else {"task": member} for member in members]
    return any(member.get("group", member.get("task")) not in files for member in given)


def find_names(spec: str, manager: Any) -> list[str]:
    """The tasks, groups and tags of a `TaskManager` that a name, or a pattern with `*`, stands for."""
    if spec in manager.task_index:
        return [spec]
    found = manager.match_tasks([spec]) if "*" in spec else []
    if not found:
        hint = did_you_mean(spec, manager.task_index) or "."
        raise ConfigurationError(
            f"unknown task {spec!r}{hint} `lm-eval ls tasks` lists the names; name a task of your own by its .yaml "
            "file or its folder"
        )
    return found


def _load(name: str, manager: Any) -> dict[str, Any]:
    try:
        with errors_only():  # it warns about every default that a task file does not set
            return manager.load([name])
    except Exception as error:  # the harness, datasets or a template can raise anything
        reason = ": ".join(str(part) for part in (error, error.__cause__) if part)
        remedy = "; the harness's own tasks read their data from the hub" if isinstance(error, OSError) else ""
        raise ConfigurationError(
            f"task {name!r} could not be loaded ({type(error).__name__}): {reason}{remedy}"
        ) from error


def _is_local(spec: str) -> bool:
    """Whether a spec looks like a path, or is a folder that contains YAML files."""
    looks_like_path = spec.endswith(SUFFIXES) or os.sep in spec or spec.startswith((".", "~"))
    return looks_like_path or bool(_yaml_files(Path(spec)))


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)


def _by_name(files: Sequence[TaskFile]) -> dict[str, TaskFile]:
    named: dict[str, TaskFile] = {}
    for file in files:
        other = named.setdefault(file.name, file)
        if other.path.resolve() != file.path.resolve():
            raise ConfigurationError(
                f"task {file.name!r} is in {str(other.path)!r} and in {str(file.path)!r}; rename one of them"
            )
    return named


def read_task_files(path: Path) -> list[TaskFile]:
    """The task of a file, or those of a folder; YAML files there that are not tasks (a base to include) are skipped."""
    if not path.exists():
        raise ConfigurationError(f"task file {str(path)!r} does not exist")
    configs = [(file, _read(file)) for file in (_yaml_files(path) if path.is_dir() else [path])]
    found = [_task_file(file, config) for file, config in configs if {"task", "group"} & set(config)]
    if not found:
        raise ConfigurationError(f"{str(path)!r} holds no task: a .yaml file with the key 'task' or 'group'")
    return found


def _read(path: Path) -> dict[str, Any]:
    """The content of a task file, with the files it includes and the functions it names."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return load_yaml(path)
    except (yaml.YAMLError, ValueError, OSError, ImportError, AttributeError) as error:
        raise ConfigurationError(f"task file {str(path)!r} cannot be read: {error}") from error


def _task_file(path: Path, config: dict[str, Any]) -> TaskFile:
    """A task, or a group with tasks written out in it, with full paths to its data files."""
    data: list[str] = []

    def placed(names: Any) -> Any:  # in whatever nesting `datasets` allows
        if isinstance(names, Mapping):
            return {key: placed(value) for key, value in names.items()}
        if isinstance(names, list):
            return [placed(name) for name in names]
        place = _find(str(names), path)
        data.extend(sorted(glob(place)))
        return place

    def located(part: Any) -> Any:
        options = part.get("dataset_kwargs") if isinstance(part, Mapping) else None
        if not options or {**config, **part}.get("dataset_path") not in LOCAL_FORMATS:
            return part
        key = "data_dir" if "data_dir" in options else "data_files"
        return {**part, "dataset_kwargs": {**options, key: placed(options[key])}} if key in options else part

    whole = located(config)
    if isinstance(config.get("task"), list):
        whole = {**whole, "task": [located(item) for item in config["task"]]}
    file = TaskFile(path, whole, tuple(data))
    if not isinstance(file.name, str):
        raise ConfigurationError(f"the name in task file {str(path)!r} is {file.name!r}; expected a string")
    return file


def _find(name: str, task_file: Path) -> str:
    """A data file, folder or pattern beside the task file, or else in the current directory; a URL unchanged."""
    if "://" in name:
        return name
    for place in (task_file.resolve().parent / Path(name).expanduser(), Path(name).expanduser()):
        if glob(str(place)):
            return str(place)
    raise DataError(
        f"data file {name!r} of task file {str(task_file)!r} does not exist, neither beside the task file nor in the "
        "current directory"
    )


@contextmanager
def errors_only() -> Iterator[None]:
    """Only errors from the harness's log."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
