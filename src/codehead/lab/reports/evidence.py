"""The result files of a folder: the intact ones for the report, the names of damaged ones for its notice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codehead.errors import CheckpointError, DataError
from codehead.lab.baselines import FILE_KEY
from codehead.lab.result import EVERY_SETTING, TIMING, Result

CONFIG_KEYS = {"protocol", "cell", "setting", "seed", "reference"}
METRIC_KEYS = {"test", "size", "decision", "history"}


@dataclass(frozen=True)
class Damaged:
    """A file whose numbers must not be used."""

    name: str  # relative to the folder
    reason: str


@dataclass(frozen=True)
class Evidence:
    """The sources of a report."""

    results: Mapping[Any, Result]  # by file name
    timings: Mapping[str, Result] = field(default_factory=dict)  # by setting
    damaged: tuple[Damaged, ...] = ()

    def timing(self, setting: str) -> Mapping[str, Mapping[str, Any]]:
        """The times at a setting, by cell; empty if there are none."""
        timing = self.timings.get(setting or EVERY_SETTING)
        return timing.metrics["cells"] if timing else {}


def read_evidence(folder: str | Path, *, refuse_damaged: bool = False) -> Evidence:
    """Read every result file of a protocol's `results` folder and its timings.

    Raises:
        DataError: no file is intact, two protocols share the folder, or two files hold the same run.
        CheckpointError: a file is damaged, which is to be refused.
    """
    folder = Path(folder)
    damaged: list[Damaged] = []
    results = _read(folder, sorted(folder.glob("*.json")), damaged, CONFIG_KEYS, METRIC_KEYS)
    timings = _read(folder, sorted((folder / TIMING).glob("*.json")), damaged, set(), {"cells"})
    if refuse_damaged and damaged:
        raise CheckpointError(f"result {str(folder / damaged[0].name)!r} {damaged[0].reason}")
    if not results:
        names = ", ".join(file.name for file in damaged)
        because = f"all are damaged: {names}; measure them again" if names else "run the protocol first"
        if (folder / "config.json").exists():
            because = "it holds a model; name the folder that codehead protocol run wrote"
        raise DataError(f"no result files in {str(folder)!r} to report; {because}")
    check_one_protocol(results)
    return Evidence(results, {Path(name).stem: timing for name, timing in timings.items()}, tuple(damaged))


def read_results(folder: str | Path) -> list[Result]:
    """The results of a folder; raises as `read_evidence` does, also for a damaged file."""
    return list(read_evidence(folder, refuse_damaged=True).results.values())


def check_one_protocol(results: Mapping[str, Result]) -> None:
    """Refuse results that must not be averaged: two protocols, one run counted twice, a cell that was changed."""
    first_of: dict[str, str] = {}
    for name, result in results.items():
        first_of.setdefault(result.config["protocol"], name)
    if len(first_of) > 1:
        named = " and ".join(f"{protocol!r} ({name})" for protocol, name in first_of.items())
        raise DataError(f"the folder holds results of several protocols: {named}; report each from its own folder")
    made_of: dict[tuple[str, str], tuple[str, Any]] = {}
    run_of: dict[tuple[str, str, int], str] = {}
    for name, result in results.items():
        config = result.config
        run = (config["setting"], config["cell"], config["seed"])
        twin = run_of.setdefault(run, name)
        if twin != name:
            raise DataError(f"{twin!r} and {name!r} hold the same cell, setting and seed; remove one of them")
        other, made = made_of.setdefault(run[:2], (name, _but_for_seeds(config)))
        if made != _but_for_seeds(config):
            raise DataError(
                f"{other!r} and {name!r} are of the same cell, but their runs differ in more than the seed: the "
                "protocol was changed in between; remove the older ones, or run them again"
            )


def _but_for_seeds(config: Mapping[str, Any]) -> Any:
    """The content of a cell, without its seed."""

    def pruned(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: pruned(inner) for key, inner in value.items() if key != "seed"}

    return pruned({key: config.get(key) for key in ("run", FILE_KEY, "split", "answers")})


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


# The origin of a report's numbers, gathered from the provenance of its result files.


DIGITS = 16  # of a checksum, enough to compare by eye


def origin(evidence: Evidence) -> list[tuple[str, list[str]]]:
    """Headings with their facts, the same for the same files."""
    results = list(evidence.results.values())
    facts = {
        "Runs": [f"{len(results)} results, {_seeds(results)}"],
        "Machine": _counted(_machine(result.provenance) for result in results),
        "Versions": _counted(_versions(result) for result in results),
        "Code": _counted(_code(result.provenance) for result in results),
        "Trained": _trained(results),
        "Measured": _measured(results),
        "Backbone": _distinct(_backbone(result) for result in results),
        "Data": _distinct(_file(file) for result in results for file in result.provenance.get("data", [])),
        "BERTScore encoder": _distinct(_encoder(result) for result in results),
        "Time": [_timing(timing, setting) for setting, timing in sorted(evidence.timings.items())],
    }
    return [(heading, lines) for heading, lines in facts.items() if lines]


def files(evidence: Evidence) -> list[tuple[str, str]]:
    """Names of the result files with the beginning of their checksums."""
    timings = {f"{TIMING}/{setting}.json": timing for setting, timing in evidence.timings.items()}
    return [(name, result.checksum[:DIGITS]) for name, result in {**evidence.results, **timings}.items()]


def _seeds(results: Iterable[Result]) -> str:
    seeds = sorted({result.config["seed"] for result in results})
    return ("seeds " if len(seeds) > 1 else "seed ") + ", ".join(map(str, seeds))


def _machine(provenance: Mapping[str, Any]) -> str:
    hardware = provenance["hardware"]
    if hardware["gpu"]:
        return f"{hardware['gpu']} with {hardware['cpu']}"
    return f"{hardware['cpu']}, cores: {hardware['cores']}, threads per run: {hardware['threads']}"


def _versions(result: Result) -> str:
    provenance = result.provenance
    named = {"codehead": provenance["codehead"], "Python": provenance.get("python"), **provenance["packages"]}
    return ", ".join(f"{name} {version}" for name, version in named.items() if version)


def _code(provenance: Mapping[str, Any]) -> str:
    git = provenance["git"]
    return f"commit {git['commit'][:10]}{' with uncommitted changes' if git['dirty'] else ''}" if git else ""


def _trained(results: Iterable[Result]) -> list[str]:
    starts = [result.provenance["started_at"] for result in results if result.provenance.get("started_at")]
    seconds = sum(result.provenance.get("wall_seconds") or 0.0 for result in results)
    return [f"runs started {_span(starts)} (UTC)", f"{duration(seconds)} of wall time in total"] if starts else []


def _measured(results: Iterable[Result]) -> list[str]:
    """When and where: a run that protocols share is measured when the first of them needs it."""
    measured = [result.provenance["measured"] for result in results if result.provenance.get("measured")]
    if not measured:
        return []
    places = _counted("; ".join(filter(None, (_machine(one), _code(one)))) for one in measured)
    return [f"{_span([one['at'] for one in measured])} (UTC)", *places]


def _span(moments: Sequence[str]) -> str:
    """`2026-01-31 12:00`, or from the first to the last."""
    first, last = (f"{moment[:10]} {moment[11:16]}" for moment in (min(moments), max(moments)))
    return first if first == last else f"{first} to {last}"


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _backbone(result: Result) -> str:
    """The model that the cell starts from: the checksum of its weights, and where they were trained."""
    model = (result.config.get("run") or {}).get("model")
    if not isinstance(model, Mapping) or "backbone" not in model:
        return ""
    files = result.provenance.get("backbone") or []
    facts = [_file(file) for file in files if str(file["name"]).endswith(".safetensors")]
    training = result.provenance.get("backbone_training")
    if training:
        started = f"training started {_span([training['started_at']])} (UTC)"
        facts += filter(None, (started, _machine(training), _code(training)))
    return ": ".join(filter(None, (str(model["backbone"]), "; ".join(facts))))


def _file(file: Mapping[str, Any]) -> str:
    if "sha256" not in file:
        return str(file["name"])
    return f"{file['name']}: {file['bytes']:,} bytes, sha256 {file['sha256'][:DIGITS]}…"


def encoders(results: Iterable[Result]) -> list[str]:
    """Names of the BERTScore encoders as one text, if there are any."""
    names = {encoder["name"] for encoder in map(_encoder_of, results) if encoder}
    return [" and ".join(sorted(names))] if names else []


def _encoder_of(result: Result) -> Mapping[str, Any] | None:
    return ((result.metrics.get("answers") or {}).get("bertscore") or {}).get("encoder")


def _encoder(result: Result) -> str:
    encoder = _encoder_of(result)
    if not encoder:
        return ""
    label = "comparable" if encoder.get("comparable") else "not comparable"
    checksum = f", sha256 {encoder['sha256'][:DIGITS]}…" if encoder.get("sha256") else ""
    return f"{encoder['name']}, layer {encoder['layers']}{checksum}; {label} with published BERTScores"


def _timing(timing: Result, setting: str) -> str:
    told = timing.metrics
    work = (
        f"{told['prompts']} prompts, {told['new_tokens']} new tokens each, {told['batch_size']} at a time, "
        f"{told['repeats']} interleaved repeats"
    )
    dtypes = sorted({cell["dtype"] for cell in told["cells"].values() if "dtype" in cell})
    return f"{setting}: {', '.join([work, *dtypes])}; {_machine(timing.provenance)}"


def _counted(texts: Iterable[str]) -> list[str]:
    """Each distinct text once, the most frequent first, with counts if there are several."""
    counts = Counter(text for text in texts if text)
    if len(counts) < 2:
        return list(counts)
    return [f"{text} ({count} runs)" for text, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _distinct(texts: Iterable[str]) -> list[str]:
    return sorted({text for text in texts if text})
