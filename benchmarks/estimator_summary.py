"""Summary of the runs of benchmarks/estimator.py: means over folds, and by fold only what intervals need."""

from __future__ import annotations

from typing import Any

import numpy as np

THEIRS = "sklearn OutputCode"
OURS = "dense_random"
DEFAULT = "likelihood"


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Of a data set: `methods`, `paired` accuracies by dichotomizer and fold, and `probabilities` if there are any."""
    runs = found["runs"]
    shape = {key: value for key, value in found.items() if key != "runs"}
    kept = {
        **shape,
        "methods": {name: _method([_parts(run) for run in runs], name) for name in _parts(runs[0])},
        "paired": {kind: _paired(of_kind) for kind, of_kind in _by_kind(runs).items()},
    }
    if "probabilities" in runs[0]:
        kept["probabilities"] = {kind: _probabilities(of_kind) for kind, of_kind in _by_kind(runs).items()}
    return kept


def _parts(run: dict[str, Any]) -> dict[str, Any]:
    return {**run["codings"], **run["baselines"]}


def _by_kind(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    kinds = dict.fromkeys(run["dichotomizer"] for run in runs)
    return {kind: [run for run in runs if run["dichotomizer"] == kind] for kind in kinds}


def _method(runs: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Columns of the first fold; mean accuracy by decoder; median time, relative to scikit-learn's on the same fold."""

    def times(what: str) -> float:
        return float(np.median([run[name][what] / run[THEIRS][what] for run in runs]))

    decoders = runs[0][name]["accuracy"]
    return {
        "columns": runs[0][name]["columns"],
        "accuracy": {one: float(np.mean([run[name]["accuracy"][one] for run in runs])) for one in decoders},
        "fit": times("fit_seconds"),
        "predict": times("predict_seconds"),
    }


def _paired(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Accuracies by fold of ours with its defaults, and of scikit-learn's."""
    return {
        "ours": [run["codings"][OURS]["accuracy"][DEFAULT] for run in runs],
        "theirs": [run["baselines"][THEIRS]["accuracy"]["own"] for run in runs],
    }


def _probabilities(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over folds by method."""
    measures = ("log_loss", "calibration_error", "accuracy")
    return {
        method: {what: float(np.mean([run["probabilities"][method][what] for run in runs])) for what in measures}
        for method in runs[0]["probabilities"]
    }
