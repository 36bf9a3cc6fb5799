"""Where the numbers of a report come from, gathered from the provenance of its result files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from codehead.lab.protocols.layout import TIMING
from codehead.lab.reports.evidence import Evidence
from codehead.lab.result import Result

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
    """When and where: a run that protocols share is measured when the first of them asks for it."""
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
    metrics = timing.metrics
    told = [
        f"{metrics[name]} {text}"
        for name, text in (
            ("prompts", "prompts"),
            ("new_tokens", "new tokens each"),
            ("batch_size", "at a time"),
            ("repeats", "interleaved repeats"),
        )
        if metrics.get(name) is not None
    ]
    told += sorted({cell["dtype"] for cell in metrics["cells"].values() if "dtype" in cell})
    return f"{setting}: {', '.join(told)}; {_machine(timing.provenance)}"


def _counted(texts: Iterable[str]) -> list[str]:
    """Every different text once, the most frequent first, with its count if there are several."""
    counts = Counter(text for text in texts if text)
    if len(counts) < 2:
        return list(counts)
    return [f"{text} ({count} runs)" for text, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _distinct(texts: Iterable[str]) -> list[str]:
    return sorted({text for text in texts if text})
