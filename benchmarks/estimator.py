"""Codings and decodings of `codehead.sklearn.OutputCodeClassifier` against scikit-learn's own multi-class strategies.

    OMP_NUM_THREADS=1 python benchmarks/estimator.py --out results/benchmarks/estimator.json

Ten data sets, 5 × 2 cross-validation, linear SVM and logistic regression as dichotomizers: accuracy, and processor
seconds to fit and to predict; log loss and calibration error of the probabilities; predictions per second at 1,000
classes. Every finished data set is kept in --parts, from where an interrupted run resumes; the result file has the
summary by estimator_summary.py.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from estimator_data import PROBLEMS, SEED
from estimator_summary import summary
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multiclass import OutputCodeClassifier as TheirOutputCodeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.parallel import Parallel

from codehead.codes.codebook import PackedCodebook
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS
from codehead.lab.result import Result, write_json
from codehead.sklearn import OutputCodeClassifier
from codehead.sklearn.dichotomizers import ClassDecision, bit_scores, out_of_fold_scores, stack
from codehead.training.provenance import provenance, utc_now

DICHOTOMIZERS: dict[str, Callable[[], BaseEstimator]] = {
    "linear SVM": lambda: LinearSVC(dual=False),
    "logistic regression": lambda: LogisticRegression(solver="liblinear"),
}
CODINGS = (
    "dense_random", "minrandom", "sparse_random", "itq", "merged_forest",
    "one_vs_all", "one_vs_one", "decoc", "forest_ecoc", "ecoc_one",
)  # fmt: skip
MANY = 50
"""With more classes, only the codings of any length are trained, and one_vs_all on a tenth of the budget."""
CODINGS_OF_MANY = ("dense_random", "sparse_random", "itq")
CODE_SIZES = {"clusters-1000": 0.1}
CODE_SIZE = 1.5
FOLDS = 2
"""Folds of the scores that decoders and calibration are fitted to."""


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its processor seconds."""
    start = time.process_time()
    value = run()
    return value, time.process_time() - start


def scaled(X: Any, train: np.ndarray, test: np.ndarray) -> tuple[Any, Any]:
    """Both halves, with the scaling of the first."""
    scaler = make_pipeline(StandardScaler() if isinstance(X, np.ndarray) else MaxAbsScaler()).fit(X[train])
    return scaler.transform(X[train]), scaler.transform(X[test])


def coding(
    base: BaseEstimator, code: str, size: float, seed: int, X: Any, y: Any, Z: Any, truth: Any
) -> dict[str, Any]:
    """One code, trained once, with every decoder: accuracies, and the seconds of the default."""
    classifier = OutputCodeClassifier(base, code=code, code_size=size, random_state=seed)
    _, fit_seconds = timed(lambda: classifier.fit(X, y))
    _, predict_seconds = timed(lambda: classifier.predict(Z))
    matrix = classifier.code_book_[:, (classifier.code_book_.max(0) == 1) & (classifier.code_book_.min(0) == -1)]
    ids = np.searchsorted(classifier.classes_, y)
    held_out = out_of_fold_scores(base, X, ids, matrix, {}, FOLDS, Parallel())
    dichotomizers = [each for each in classifier.estimators_ if hasattr(each, "coef_")]
    scores = bit_scores(dichotomizers, Z, stack(dichotomizers))
    table = (
        CodewordTable(classifier.codebook_)
        if matrix.shape[1] == classifier.codebook_.length
        else CodewordTable(PackedCodebook.from_array(matrix))
    )
    accuracy = {}
    for decoder in DECODERS.names():
        decision = ClassDecision.fit(table, decoder, *held_out, calibrated=False)
        accuracy[decoder] = float((classifier.classes_[decision.best(scores)] == truth).mean())
    return {
        "columns": int(classifier.codebook_.length),
        "fit_seconds": fit_seconds,
        "predict_seconds": predict_seconds,
        "accuracy": accuracy,
    }


def baseline(classifier: BaseEstimator, X: Any, y: Any, Z: Any, truth: Any) -> dict[str, Any]:
    """One of scikit-learn's strategies."""
    _, fit_seconds = timed(lambda: classifier.fit(X, y))
    answers, predict_seconds = timed(lambda: classifier.predict(Z))
    return {
        "columns": len(classifier.estimators_),
        "fit_seconds": fit_seconds,
        "predict_seconds": predict_seconds,
        "accuracy": {"own": float((answers == truth).mean())},
    }


def baselines(base: BaseEstimator, size: float, seed: int, num_classes: int) -> Iterator[tuple[str, BaseEstimator]]:
    """scikit-learn's strategies; OneVsOne would train 4,950 classifiers at 100 classes and 499,500 at 1,000."""
    yield "sklearn OutputCode", TheirOutputCodeClassifier(clone(base), code_size=size, random_state=seed)
    yield "sklearn OneVsRest", OneVsRestClassifier(clone(base))
    if num_classes <= MANY:
        yield "sklearn OneVsOne", OneVsOneClassifier(clone(base))


def probabilities(base: BaseEstimator, seed: int, X: Any, y: Any, Z: Any, truth: Any) -> dict[str, dict[str, float]]:
    """Log loss and expected calibration error of `predict_proba`, ours and that of scikit-learn's calibrated OvR."""
    made = {
        "dense_random": OutputCodeClassifier(base, random_state=seed),
        "dense_random + platt": OutputCodeClassifier(base, calibration="platt", cv=FOLDS, random_state=seed),
        "one_vs_all + platt": OutputCodeClassifier(base, code="one_vs_all", calibration="platt", cv=FOLDS),
        "sklearn CalibratedClassifierCV(OneVsRest)": CalibratedClassifierCV(
            OneVsRestClassifier(base), cv=FOLDS, ensemble=False
        ),
    }
    found = {}
    for name, classifier in made.items():
        _, seconds = timed(lambda classifier=classifier: classifier.fit(X, y))
        p = classifier.predict_proba(Z)
        answers = classifier.classes_[p.argmax(axis=1)]
        found[name] = {
            "log_loss": float(log_loss(truth, np.clip(p, 1e-15, None), labels=classifier.classes_)),
            "calibration_error": calibration_error(p.max(axis=1), answers == truth),
            "accuracy": float((answers == truth).mean()),
            "fit_seconds": seconds,
        }
    return found


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Mean |accuracy − confidence| over equally wide bins of confidence, weighted by their samples."""
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(places, right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def data_set(name: str) -> dict[str, Any]:
    """All measurements on one data set."""
    X, y = PROBLEMS[name]()
    y = np.asarray(y)
    num_classes, size = len(np.unique(y)), CODE_SIZES.get(name, CODE_SIZE)
    codings = CODINGS if num_classes <= MANY else CODINGS_OF_MANY
    runs: list[dict[str, Any]] = []
    folds = RepeatedStratifiedKFold(n_splits=2, n_repeats=5, random_state=SEED)
    for fold, (train, test) in enumerate(folds.split(X, y)):
        halves = scaled(X, train, test)
        arguments = (halves[0], y[train], halves[1], y[test])
        for kind, make in DICHOTOMIZERS.items():
            run: dict[str, Any] = {"fold": fold, "dichotomizer": kind}
            run["codings"] = {code: coding(make(), code, size, fold, *arguments) for code in codings}
            run["baselines"] = {
                who: baseline(each, *arguments) for who, each in baselines(make(), size, fold, num_classes)
            }
            if num_classes <= MANY:
                run["probabilities"] = probabilities(make(), fold, *arguments)
            runs.append(run)
            print(f"{name}: fold {fold}, {kind}", flush=True)
    shape = {"samples": X.shape[0], "features": X.shape[1], "classes": num_classes, "code_size": size}
    return {**shape, "runs": runs}


def speed(num_classes: int = 1000, features: int = 64, repeats: int = 5) -> list[dict[str, Any]]:
    """Processor seconds of `predict` at 1,000 classes, ours and scikit-learn's with codes of equal length."""
    X, y = PROBLEMS["clusters-1000"]()
    X = np.tile(X, (1, features // X.shape[1]))
    found = []
    for size in (0.1, 1.0, 1.5):
        fast = RidgeClassifier(solver="cholesky")
        ours = OutputCodeClassifier(fast, code_size=size, random_state=SEED).fit(X[:2000], y[:2000])
        theirs = TheirOutputCodeClassifier(fast, code_size=size, random_state=SEED).fit(X[:2000], y[:2000])
        for batch in (1, 100, 4000):
            both: dict[str, list[float]] = {"ours": [], "theirs": []}
            for _ in range(repeats):
                both["ours"].append(timed(partial(ours.predict, X[-batch:]))[1])
                both["theirs"].append(timed(partial(theirs.predict, X[-batch:]))[1])
            medians = {who: float(np.median(values)) for who, values in both.items()}
            found.append({"columns": len(ours.estimators_), "batch": batch, "features": features, **medians})
            print(found[-1], flush=True)
    return found


def kept(path: Path, measure: Callable[[], Any]) -> Any:
    """A part, measured before or now."""
    if not path.exists():
        started, start = utc_now(), time.monotonic()
        found = measure()
        write_json(path, {"started_at": started, "wall_seconds": time.monotonic() - start, "found": found})
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Parse the command line, measure what is missing, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=Path, default=Path("runs/estimator"), help="finished data sets are kept here")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # 5 × 2 cross-validation of tiny data sets has classes in one half only
    parts = {name: kept(options.parts / f"{name}.json", lambda name=name: data_set(name)) for name in PROBLEMS}
    quick = kept(options.parts / "speed.json", speed)
    metrics = {"data_sets": {name: summary(part["found"]) for name, part in parts.items()}, "speed": quick["found"]}
    config = {"code_size": CODE_SIZE, "code_sizes": CODE_SIZES, "oof_folds": FOLDS, "cross_validation": "5 × 2"}
    everything = [*parts.values(), quick]
    origin = provenance(seed=SEED)
    origin["packages"] |= {name: metadata.version(name) for name in ("scikit-learn", "scipy")}
    record = {
        **origin,
        "started_at": min(part["started_at"] for part in everything),
        "wall_seconds": round(sum(part["wall_seconds"] for part in everything), 1),
    }
    Result("estimator", config, metrics, record).write(options.out)


if __name__ == "__main__":
    main()
