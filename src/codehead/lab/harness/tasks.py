"""Which tasks of lm-evaluation-harness are meant: its own by name, or local files, with the data that they name."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from codehead.errors import ConfigurationError, DataError
from codehead.registry import did_you_mean

SUFFIXES = (".yaml", ".yml")
LOCAL_FORMATS = ("json", "csv", "text", "parquet", "arrow")
"""Values of `dataset_path` for which `datasets` reads local files."""


@dataclass(frozen=True)
class TaskFile:
    """A local task or group: where it stands, what it says, and the data files that it names."""

    path: Path
    config: dict[str, Any]
    data: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the task or group is called."""
        return self.config["group"] if "group" in self.config else self.config["task"]

    @property
    def members(self) -> list[str]:
        """Names that a group refers to, as against tasks that are written out in it; none for a task."""
        listed = self.config.get("task") if "group" in self.config else None
        members = listed if isinstance(listed, list) else []
        items = [item if isinstance(item, dict) else {"task": item} for item in members]
        named = [item["task"] for item in items if "dataset_path" not in {**self.config, **item} and "task" in item]
        return [name for name in named if isinstance(name, str)]


def load_tasks(specs: Sequence[str]) -> tuple[dict[str, Any], list[TaskFile]]:
    """Tasks and groups as `lm_eval.evaluate` takes them, and the local files that they came from.

    A spec is a name, group or pattern of the harness, a local task file, or a folder of them; the members of a local
    group may stand beside it. A local task goes before one of the same name in the harness.
    Raises ConfigurationError for unknown names and bad files, DataError for missing data.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import TaskIndex

    if not specs:
        raise ConfigurationError("--tasks names no task")
    local = {spec: read_task_files(Path(spec).expanduser()) for spec in specs if _is_local(spec)}
    given = [file for found in local.values() for file in found]
    beside = [file for group in given if "group" in group.config for file in read_task_files(group.path.parent)]
    files = _by_name([*given, *beside])
    members = {name for file in files.values() for name in file.members}
    # The index of the harness's own names takes seconds: it reads 14,000 files.
    manager = TaskManager(include_defaults=len(local) < len(specs) or not members <= set(files))
    for name, file in files.items():
        manager.task_index[name] = TaskIndex.entry_from_config(file.config)
    for name in sorted(members):
        find_names(name, manager)
    wanted = [[file.name for file in local[spec]] if spec in local else find_names(spec, manager) for spec in specs]
    parts = [_load(name, manager) for name in dict.fromkeys(name for names in wanted for name in names)]
    loaded = {kind: {k: v for part in parts for k, v in part[kind].items()} for kind in ("tasks", "groups")}
    return loaded, [file for name, file in files.items() if name in loaded["tasks"] | loaded["groups"]]


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
        with errors_only():  # it warns of every default that a task file leaves to it
            return manager.load([name])
    except Exception as error:  # whatever the harness, datasets or a template make of the file and its data
        reason = ": ".join(str(part) for part in (error, error.__cause__) if part)
        remedy = "; the harness's own tasks read their data from the hub" if isinstance(error, OSError) else ""
        raise ConfigurationError(
            f"task {name!r} could not be loaded ({type(error).__name__}): {reason}{remedy}"
        ) from error


def _is_local(spec: str) -> bool:
    """Whether a spec is a path by its look, or a folder that holds YAML files."""
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
    """The task of a file, or those of a folder; YAML files there that are no task (a base to include) are left out."""
    if not path.exists():
        raise ConfigurationError(f"task file {str(path)!r} does not exist")
    configs = [(file, _read(file)) for file in (_yaml_files(path) if path.is_dir() else [path])]
    found = [_task_file(file, config) for file, config in configs if {"task", "group"} & set(config)]
    if not found:
        raise ConfigurationError(f"{str(path)!r} holds no task: a .yaml file with the key 'task' or 'group'")
    return found


def _read(path: Path) -> dict[str, Any]:
    """What a task file says, with the files it includes and the functions it names."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return load_yaml(path)
    except (yaml.YAMLError, ValueError, OSError, ImportError, AttributeError) as error:
        raise ConfigurationError(f"task file {str(path)!r} cannot be read: {error}") from error


def _task_file(path: Path, config: dict[str, Any]) -> TaskFile:
    """A task, or a group with tasks written out in it, whose data files are named in full."""
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
    """A data file, folder or pattern beside the task file, or else in the current directory; a URL as it is."""
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
    """Nothing but errors from the harness's log."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
