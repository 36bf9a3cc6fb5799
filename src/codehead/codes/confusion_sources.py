"""Where the confusions of a growing code come from: counted once, or measured with every new column."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np

from codehead.codes.arrays import Floats, Integers, Symbols
from codehead.codes.codebook import Codebook
from codehead.codes.confusion import Confusion
from codehead.errors import ConfigurationError


class Evaluation(NamedTuple):
    """What training and validating with a codebook has shown.

    `validation` and `training` are confusions in any form that `Confusion.of` takes, of data that were held out and
    of data that were learnt from; without the latter the former count alone. `column_errors` (n,) are the error rates
    of the dichotomizers; without them they are estimated from the confusions.
    """

    validation: Any
    training: Any = None
    column_errors: Any = None


class Measured(NamedTuple):
    """Pairs (p, 2) of different classes, how often they are confused (p,), and the error rate of all answers."""

    pairs: Integers
    mass: Floats
    error: float


class ConfusionSource(ABC):
    """Tells what a code confuses."""

    origin: dict[str, Any]
    """What a codebook records of it."""

    @abstractmethod
    def look(self, codebook: Codebook) -> Measured:
        """What the code confuses now."""

    @abstractmethod
    def resolve(self, pairs: np.ndarray) -> None:
        """A column was added for those pairs of the last look that are true in `pairs` (p,)."""

    @abstractmethod
    def column_errors(self, symbols: Symbols) -> Floats:
        """The error rates (n,) of the columns of the code that was looked at last."""


@final
class Counted(ConfusionSource):
    """Counts that stay; what a column was made for counts as resolved."""

    def __init__(self, confusion: Confusion) -> None:
        self.origin = confusion.origin()
        self._confusion = confusion
        self._pairs, self._mass = confusion.pairs()

    def look(self, codebook: Codebook) -> Measured:
        return Measured(self._pairs, self._mass, float(self._mass.sum()) / self._confusion.total)

    def resolve(self, pairs: np.ndarray) -> None:
        self._mass = np.where(pairs, 0.0, self._mass)

    def column_errors(self, symbols: Symbols) -> Floats:
        return self._confusion.column_errors(symbols)


@final
class Evaluated(ConfusionSource):
    """Confusions of a validation and of a training set, as a callback measures them for a codebook.

    Their shares are mixed, w · validation + (1 − w) · training.
    """

    def __init__(self, evaluate: Callable[[Codebook], Any], weight: float) -> None:
        self.origin = {"validation_weight": weight}
        self._evaluate, self._weight = evaluate, weight

    def look(self, codebook: Codebook) -> Measured:
        found = self._evaluate(codebook)
        found = found if isinstance(found, Evaluation) else Evaluation(found)
        mixed = Confusion.of(found.validation, codebook.num_classes, "the validation of evaluate()")
        if found.training is not None:
            training = Confusion.of(found.training, codebook.num_classes, "the training of evaluate()")
            mixed = mixed.mixed(training, self._weight)
        self._confusion = mixed
        self._errors = None if found.column_errors is None else _rates(found.column_errors, codebook.length)
        return Measured(*mixed.pairs(), mixed.error)

    def resolve(self, pairs: np.ndarray) -> None:
        """Nothing: the next look will tell."""

    def column_errors(self, symbols: Symbols) -> Floats:
        return self._confusion.column_errors(symbols) if self._errors is None else self._errors


def _rates(errors: Any, length: int) -> Floats:
    rates = np.asarray(errors, dtype=np.float64)
    if rates.shape != (length,) or not ((rates >= 0) & (rates <= 1)).all():
        message = f"evaluate() returned column_errors {rates.shape} for a code of {length} columns"
        raise ConfigurationError(f"{message}; give one error rate from 0 to 1 for each")
    return rates
