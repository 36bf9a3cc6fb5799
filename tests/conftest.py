from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

# A machine may be busy: no example has to end in a given time.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

DATA_VARIABLE = "CODEHEAD_TEST_DATA"
REAL_VARIABLE = "CODEHEAD_REAL_MODELS"


@pytest.fixture(scope="module", autouse=True)
def _short_garbage_collections() -> None:
    """What is loaded by now stays: accelerate collects before every training, which looks at all that is not frozen."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_numbers_in_every_order() -> None:
    """A test that fails can be run again alone: torch's numbers do not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Callable[[str], Path]:
    """Path of a file or folder of real data: skips if no data folder is named, fails if it lacks the file."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"{DATA_VARIABLE} is not set: it names a folder with alpaca/, tinystories/, tokenizers/, …")

    def find(name: str) -> Path:
        path = Path(folder) / name
        if not path.exists():
            pytest.fail(f"{DATA_VARIABLE} is set to {folder!r}, which has no {name!r}")
        return path

    return find


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """Folder of a real pretrained model, by its name: skips where `make real-models` has not brought it."""
    place = Path(os.environ.get(REAL_VARIABLE) or Path(__file__).parents[1] / "real-models")

    def find(name: str) -> Path:
        if not (place / name / "config.json").exists():
            pytest.skip(f"{place} has no {name}: run `make real-models`, or let {REAL_VARIABLE} name their folder")
        return place / name

    return find
