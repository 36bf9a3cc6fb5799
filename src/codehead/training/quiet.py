"""Hides the progress bars of the libraries below while one of our own is on the screen."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def library_bars_hidden() -> Iterator[None]:
    """Within it, neither datasets ("Map") nor transformers ("Loading weights") draws a bar."""
    import datasets
    from transformers.utils import logging

    had_datasets, had_transformers = datasets.is_progress_bar_enabled(), logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_datasets:
            datasets.enable_progress_bars()
        if had_transformers:
            logging.enable_progress_bar()


@contextmanager
def peft_warnings_hidden() -> Iterator[None]:
    """PEFT reads an attribute that transformers 5 has renamed; nothing a user can change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield
