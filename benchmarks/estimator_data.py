"""Ten classification problems, shipped with scikit-learn or drawn from a seed: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn import datasets
from sklearn.feature_extraction.text import TfidfTransformer

SEED = 0
COVTYPE_SHARES = [0.365, 0.488, 0.061, 0.005, 0.016, 0.030, 0.035]
"""The shares of the seven classes of covtype."""

Problem = tuple[Any, np.ndarray]
"""Samples (N, d), dense or sparse, and labels (N,)."""


def covtype_like() -> Problem:
    """Seven classes as unequal as covtype's, in 54 features, 12 of them informative."""
    return datasets.make_classification(
        2000,
        54,
        n_informative=12,
        n_redundant=10,
        n_classes=7,
        weights=COVTYPE_SHARES,
        class_sep=1.5,
        random_state=SEED,
    )


def letter_like() -> Problem:
    """26 classes of two clusters each in 16 features, the numbers of the data set letter."""
    return datasets.make_classification(
        2600, 16, n_informative=16, n_redundant=0, n_classes=26, class_sep=2.0, random_state=SEED
    )


def shells() -> Problem:
    """Five nested shells: no linear dichotomizer can separate one from the others."""
    return datasets.make_gaussian_quantiles(n_samples=1500, n_features=5, n_classes=5, random_state=SEED)


def text_like() -> Problem:
    """2,000 documents of 20 topics over 3,000 words, as TF-IDF: word counts with a Zipf tail, a few words per topic."""
    rng = np.random.default_rng(SEED)
    labels = np.arange(2000) % 20
    background = 1 / np.arange(1, 3001)
    topics = np.stack([background * np.where(rng.random(3000) < 0.02, 6.0, 1.0) for _ in range(20)])
    topics /= topics.sum(axis=1, keepdims=True)
    counts = np.stack([rng.multinomial(rng.integers(40, 160), topics[label]) for label in labels])
    return TfidfTransformer(sublinear_tf=True).fit_transform(sp.csr_matrix(counts)), labels


def clusters(num_classes: int, per_class: int, features: int, spread: float) -> Problem:
    """Gaussian clusters around uniform centres."""
    count = num_classes * per_class
    return datasets.make_blobs(count, features, centers=num_classes, cluster_std=spread, random_state=SEED)[:2]


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "iris": lambda: datasets.load_iris(return_X_y=True),
    "wine": lambda: datasets.load_wine(return_X_y=True),
    "breast cancer": lambda: datasets.load_breast_cancer(return_X_y=True),
    "digits": lambda: datasets.load_digits(return_X_y=True),
    "covtype-like": covtype_like,
    "letter-like": letter_like,
    "shells": shells,
    "text-like": text_like,
    "clusters-100": lambda: clusters(100, 30, 32, 5.0),
    "clusters-1000": lambda: clusters(1000, 6, 32, 3.0),
}
