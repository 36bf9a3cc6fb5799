"""The result files of a folder: the whole ones for the report, the damaged ones by name for its notice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codehead.errors import CheckpointError, DataError
from codehead.lab.baselines.config import FILE_KEY
from codehead.lab.protocols.layout import EVERY_SETTING, TIMING
from codehead.lab.result import Result

CONFIG_KEYS = {"protocol", "cell", "setting", "seed", "reference"}
METRIC_KEYS = {"test", "size", "decision", "history"}


@dataclass(frozen=True)
class Damaged:
    """A file that no number may be taken from."""

    name: str  # relative to the folder
    reason: str


@dataclass(frozen=True)
class Evidence:
    """What a report is made from."""

    results: Mapping[Any, Result]  # by file name
    timings: Mapping[str, Result] = field(default_factory=dict)  # by setting
    damaged: tuple[Damaged, ...] = ()

    def timing(self, setting: str) -> Mapping[str, Mapping[str, Any]]:
        """What was timed at a setting, by cell; empty if nothing was."""
        timing = self.timings.get(setting or EVERY_SETTING)
        return timing.metrics["cells"] if timing else {}


def read_evidence(folder: str | Path) -> Evidence:
    """Read every result file of a protocol's `results` folder and its timings.

    Raises:
        DataError: no file is whole, two protocols share the folder, or two files hold the same run.
    """
    return _checked(_gathered(Path(folder)), folder)


def read_results(folder: str | Path) -> list[Result]:
    """The results of a folder in which no file may be damaged.

    Raises DataError as `read_evidence` does, and CheckpointError for a damaged file.
    """
    evidence = _gathered(Path(folder))
    for file in evidence.damaged:
        raise CheckpointError(f"result {str(Path(folder) / file.name)!r} {file.reason}")
    return list(_checked(evidence, folder).results.values())


def check_one_protocol(results: Mapping[str, Result]) -> None:
    """Refuse what must not be averaged: results of two protocols, one run counted twice, a cell that was changed."""
    first_of: dict[str, str] = {}
    made_of: dict[tuple[str, str], tuple[str, Any]] = {}
    run_of: dict[tuple[str, str, int], str] = {}
    for name, result in results.items():
        config = result.config
        first_of.setdefault(config["protocol"], name)
        run = (config["setting"], config["cell"], config["seed"])
        if len(first_of) == 1 and run in run_of:
            raise DataError(f"{run_of[run]!r} and {name!r} hold the same cell, setting and seed; remove one of them")
        run_of[run] = name
        other, made = made_of.setdefault(run[:2], (name, _but_for_seeds(config)))
        if len(first_of) == 1 and made != _but_for_seeds(config):
            raise DataError(
                f"{other!r} and {name!r} are of the same cell, but their runs differ in more than the seed: the "
                "protocol was changed in between; remove the older ones, or run them again"
            )
    if len(first_of) > 1:
        named = " and ".join(f"{protocol!r} ({name})" for protocol, name in first_of.items())
        raise DataError(f"the folder holds results of several protocols: {named}; report each from its own folder")


def _but_for_seeds(config: Mapping[str, Any]) -> Any:
    """What a cell runs, whatever its seed."""

    def pruned(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: pruned(inner) for key, inner in value.items() if key != "seed"}

    return pruned({key: config.get(key) for key in ("run", FILE_KEY, "split", "answers")})


def _gathered(folder: Path) -> Evidence:
    """Every file of the folder and its timings, damaged or not."""
    damaged: list[Damaged] = []
    results = _read(folder, sorted(folder.glob("*.json")), damaged, CONFIG_KEYS, METRIC_KEYS)
    timings = _read(folder, sorted((folder / TIMING).glob("*.json")), damaged, set(), {"cells"})
    return Evidence(results, {Path(name).stem: timing for name, timing in timings.items()}, tuple(damaged))


def _checked(evidence: Evidence, folder: str | Path) -> Evidence:
    if not evidence.results:
        names = ", ".join(file.name for file in evidence.damaged)
        because = f"all are damaged: {names}; measure them again" if names else "run the protocol first"
        if (Path(folder) / "config.json").exists():
            because = "it holds a model; name the folder that codehead protocol run wrote"
        raise DataError(f"no result files in {str(folder)!r} to report; {because}")
    check_one_protocol(evidence.results)
    return evidence


def _read(
    folder: Path, paths: list[Path], damaged: list[Damaged], config_keys: set[str], metric_keys: set[str]
) -> dict[str, Result]:
    results = {}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            result = Result.read(path)
        except CheckpointError as error:
            damaged.append(Damaged(name, str(error).removeprefix(f"result {str(path)!r} ")))
            continue
        if config_keys <= set(result.config) and metric_keys <= set(result.metrics):
            results[name] = result
        else:
            damaged.append(Damaged(name, "is not a result of a protocol"))
    return results
