"""The codeword of each class in a training set: the data that a design sees, and codes that cannot be learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, check_array, indexable
from sklearn.utils.parallel import Parallel
from sklearn.utils.validation import _check_method_params

from codehead.codes import DESIGNS, Codebook, Evaluation, build
from codehead.codes.codebook import repeats
from codehead.codes.decoc import MAX_SAMPLES
from codehead.codes.design import minimal_length
from codehead.codes.ecoc_one import VALIDATION_SHARE
from codehead.codes.packing import Floats, Integers, Symbols
from codehead.codes.table import CodewordTable
from codehead.errors import CodebookError, ConfigurationError, DataError
from codehead.sklearn.dichotomizers import ClassDecision, bit_scores, fit_columns

SIZED = ("dense_random", "sparse_random", "minrandom", "additive", "itq", "merged_forest")
"""The designs of any length: `code_size` times the number of classes, as in scikit-learn."""

FEW_COLUMNS = 64
"""Random codes with more columns leave no two classes alike, so this need not be checked."""

REDRAWS = 32
"""Seeds to try if a code of few columns leaves two classes alike."""

DATA_OPTIONS = ("prototypes", "samples", "labels")
"""The options that pass the data to a design."""


class TrainingSet(NamedTuple):
    """The data that a design may look at: samples `X`, class ids `y` (N,), other arguments of `fit`, weights included.

    `estimator` is the dichotomizers' classifier, which may turn X into numbers; `parallel` trains the dichotomizers.
    """

    X: Any
    y: Integers
    params: dict[str, Any]
    num_classes: int
    estimator: Any
    parallel: Parallel

    def _means(self, features: Any) -> Floats:
        """The weighted mean of the features (N, d) of every class: (V, d)."""
        given = self.params.get("sample_weight")
        weights = np.ones(len(self.y)) if given is None else np.asarray(given, np.float64)
        of_class = sp.csr_array((weights, (self.y, np.arange(len(self.y)))), shape=(self.num_classes, len(self.y)))
        totals = of_class.sum(axis=1)
        if not np.all(totals > 0):
            message = f"class number {int(np.argmin(totals > 0))} has no training sample (of positive weight)"
            raise ConfigurationError(
                f"{message}, so a design that looks at class means cannot place it; give the first batch samples of "
                "every class, code_params={'prototypes': …}, or a finished code"
            )
        sums = of_class @ features
        return np.asarray(sums.toarray() if sp.issparse(sums) else sums) / totals[:, None]

    def described_to(self, design: str) -> dict[str, Any]:
        """The options that pass the data to the design: all samples if it takes that many, else class means.

        A design that does not look at the data leaves X untouched. DataError if one does and X yields no numbers.
        """
        options = DESIGNS.get(design).params()
        if "prototypes" not in options:
            return {}
        features = numeric_features(self.X, self.y, self.estimator, design)
        is_small = not sp.issparse(features) and len(features) <= MAX_SAMPLES
        is_whole = self.params.get("sample_weight") is None and len(np.unique(self.y)) == self.num_classes
        if "samples" in options and is_small and is_whole:
            return {"samples": features, "labels": self.y}
        return {"prototypes": self._means(features)}


def class_codebook(classifier: Any, data: TrainingSet, seed: int) -> Codebook:
    """The codebook of the classes of `data`, in the order of their ids.

    The classifier's `code` is the name of a design, a codebook, or a matrix (V or more, n) of −1, 0 and +1 whose first
    V rows are used.
    """
    code, bits, params = classifier.code, classifier.bits, classifier.code_params
    if isinstance(code, str):
        own = _options(params)
        told = {} if any(name in own for name in DATA_OPTIONS) else data.described_to(code)
        if "evaluate" in DESIGNS.get(code).params() and "confusion" not in own and "evaluate" not in own:
            told["evaluate"] = HeldOutEvaluation(data, seed)
        length = _length(classifier.code_size, data.num_classes) if bits is None and code in SIZED else bits
        return _drawn(code, data.num_classes, length, seed, {**told, **own})
    if params:
        raise ConfigurationError(f"code_params={params!r} are options of a named design, but code is a finished matrix")
    if isinstance(code, Codebook) and code.num_classes == data.num_classes and bits in (None, code.length):
        return code
    matrix = code.to_array() if isinstance(code, Codebook) else np.asarray(code)
    if matrix.ndim != 2:
        raise ConfigurationError(f"code={code!r} is no code; give the name of a design, a Codebook or a matrix (V, n)")
    if len(matrix) < data.num_classes:
        message = f"code has {len(matrix)} codewords for {data.num_classes} classes"
        raise CodebookError(f"{message}; give a row per class, or the name of a design")
    return build("custom", data.num_classes, bits=bits, array=matrix[: data.num_classes])


def _options(params: Any) -> dict[str, Any]:
    """The options of a design; ConfigurationError for what is no dictionary of them."""
    if params is not None and (not isinstance(params, Mapping) or {"bits", "seed"} & set(params)):
        message = f"code_params={params!r} must be a dictionary of the design's options"
        raise ConfigurationError(f"{message}; the length is bits=…, the seed random_state=…")
    return dict(params or {})


def _drawn(design: str, num_classes: int, bits: int | None, seed: int, options: dict[str, Any]) -> Codebook:
    """The design's codebook for the seed, or the next one if a random code of few columns leaves two classes alike."""
    first = build(design, num_classes, bits=bits, seed=seed, **options)
    if first.seed is None or first.length > FEW_COLUMNS or alike(first.to_array()) is None:
        return first
    others = (build(design, num_classes, bits=bits, seed=seed + step, **options) for step in range(1, REDRAWS))
    return next((other for other in others if alike(other.to_array()) is None), first)


def _length(code_size: float, num_classes: int) -> int:
    """The number of columns for `code_size`; refused if too few to tell the classes apart."""
    if isinstance(code_size, bool) or not isinstance(code_size, (int, float, np.number)) or not 0 < code_size < np.inf:
        raise ConfigurationError(f"code_size={code_size!r} is not possible; give a positive number, or bits=")
    length, needed = int(num_classes * code_size), minimal_length(num_classes)
    if length < needed:
        message = (
            f"code_size={code_size} makes {length} columns for {num_classes} classes, which need at least {needed}"
        )
        least = int(np.ceil(100 * needed / num_classes)) / 100
        raise ConfigurationError(
            f"{message} to be told apart; give code_size={least} or more, or bits={needed} or more"
        )
    return length


def asked_columns(matrix: Symbols) -> np.ndarray:
    """Which columns of a coding matrix (V, n) have a +1 and a −1, so that there is something to learn: bool (n,)."""
    return np.asarray((matrix.max(axis=0) == 1) & (matrix.min(axis=0) == -1))


def alike(matrix: Symbols) -> tuple[int, int] | None:
    """Two classes whose codewords (V, n) are equal in all columns that can be learnt; None if there are none."""
    asked = matrix[:, asked_columns(matrix)]
    if not asked.shape[1]:
        return 0, 1
    equal = repeats(np.ascontiguousarray(asked).view(np.uint8))
    return (int(equal.first[0]), int(equal.items[0])) if len(equal.items) else None


def check_separates(matrix: Symbols, classes: Sequence[Any], *, is_given: bool) -> None:
    """Raise a CodebookError if the columns that can be learnt leave two classes alike.

    A given matrix may not have a column of zeros either; a random design may, if there are fewer distinct columns
    than it has to draw.
    """
    empty = np.flatnonzero(~matrix.any(axis=0))
    if is_given and len(empty):
        message = f"column {empty[0]} of code looks at none of the {len(classes)} classes ({len(empty)} such columns)"
        raise CodebookError(f"{message}; omit it")
    pair = alike(matrix)
    if pair is not None:
        message = (
            f"no dichotomizer of code tells class {classes[pair[0]]!r} from {classes[pair[1]]!r}: their codewords "
        )
        raise CodebookError(
            f"{message}are equal in every column that has both a +1 and a −1; give a matrix with distinct rows, more "
            "bits, or another random_state"
        )


# The numbers that a design sees if it looks at the data: the samples themselves, or the output of a pipeline.
#
# Dichotomizers may accept data that no design can compute with: text, categories, missing values. A pipeline defines
# how these become numbers.


def numeric_features(X: Any, ids: Integers, estimator: Any, design: str) -> Any:
    """Finite features of the samples, float64 (N, d), dense or CSR.

    These are X itself or, if X is not such a matrix, the output of the pipeline steps before its classifier, fitted to
    all samples and their class ids (N,).

    Raises:
        DataError: there is no such pipeline, one of its steps fails, or its features are not finite numbers either.
    """
    remedy = "make estimator a pipeline whose first steps turn X into finite numbers, "
    found = "X is not a matrix of finite numbers"
    try:
        return check_array(X, accept_sparse="csr", dtype=np.float64)
    except (TypeError, ValueError) as error:
        reason = error
    if isinstance(estimator, Pipeline) and len(estimator) > 1:
        remedy, found = "", "the steps of the pipeline before its classifier make no finite numbers of X"
        try:
            features = clone(estimator[:-1]).fit_transform(X, ids)
            return check_array(features, accept_sparse="csr", dtype=np.float64)
        except (TypeError, ValueError) as error:
            reason = error
    first_line = str(reason).strip().split("\n")[0]
    raise DataError(
        f"{found} ({first_line}), which code={design!r} computes with; {remedy}give code_params={{'prototypes': …}}, a "
        "row of numbers for every class, or choose a code that does not look at X, such as 'dense_random'"
    ) from reason


# The confusions of a code, found by training its dichotomizers on part of the samples: for designs that grow.


class HeldOutEvaluation:
    """The `evaluate` of `ecoc_one`: a codebook → confusions on 15% of the samples, and on the training samples.

    A column is trained once, however many codebooks it is in. Classes are decided by likelihood.
    """

    def __init__(self, data: TrainingSet, seed: int) -> None:
        (X,) = indexable(data.X)
        train, test = _split(data.y, seed)
        self._estimator, self._parallel = data.estimator, data.parallel
        self._samples = {"train": _safe_indexing(X, train), "test": _safe_indexing(X, test)}
        self._ids = {"train": data.y[train], "test": data.y[test]}
        self._params = _check_method_params(X, data.params, train)
        self._scores: dict[bytes, dict[str, Floats]] = {}

    def __call__(self, codebook: Codebook) -> Evaluation:
        """Confusions as labels, answers and counts, and the share of wrong bits in the held-out samples."""
        matrix = codebook.to_array()
        self._train_new(matrix)
        columns = [self._scores[column.tobytes()] for column in matrix.T]
        decision = ClassDecision(CodewordTable(codebook), "likelihood")
        scores = {part: np.stack([column[part] for column in columns], axis=1) for part in self._ids}
        found = {part: (ids, decision.best(scores[part]), np.ones(len(ids))) for part, ids in self._ids.items()}
        return Evaluation(found["test"], found["train"], _error_rates(scores["test"], matrix[self._ids["test"]]))

    def _train_new(self, matrix: Symbols) -> None:
        """Train the columns of a coding matrix (V, n) that were never trained."""
        new = [column for column in matrix.T if column.tobytes() not in self._scores]
        if not new:
            return
        symbols = np.stack(new, axis=1)[self._ids["train"]]
        trained = fit_columns(self._estimator, self._samples["train"], symbols, self._params, self._parallel)
        for column, dichotomizer in zip(new, trained, strict=True):
            scores = {part: bit_scores([dichotomizer], X)[:, 0] for part, X in self._samples.items()}
            self._scores[column.tobytes()] = scores


def _split(ids: Integers, seed: int) -> tuple[Integers, Integers]:
    """Indices of the training samples, at least one of every class, and of the held-out samples, at random."""
    order = np.random.RandomState(seed).permutation(len(ids))
    is_first = np.zeros(len(ids), dtype=bool)
    is_first[np.unique(ids[order], return_index=True)[1]] = True
    count = min(max(1, round(VALIDATION_SHARE * len(ids))), int((~is_first).sum()))
    if not count:
        message = "every class has a single sample, so none can be held out to find confusions"
        raise ConfigurationError(f"{message}; give more data, or code_params={{'confusion': …}}")
    test = order[~is_first][:count]
    return np.setdiff1d(order, test), test


def _error_rates(scores: Floats, symbols: Symbols) -> Floats:
    """The share of wrong signs (n,) in scores (N, n) where the symbols are not 0; ½ if there are none."""
    looked_at = (symbols != 0).sum(axis=0)
    wrong = ((scores * symbols <= 0) & (symbols != 0)).sum(axis=0)
    return np.asarray(np.where(looked_at > 0, wrong / np.maximum(looked_at, 1), 0.5))
