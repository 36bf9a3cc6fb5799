"""Tasks one after the other, or in processes of their own; a failure belongs to its task alone."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from codehead.errors import CodeheadError
from codehead.training.quiet import library_bars_hidden

Callbacks = Callable[[str], list[Any]]


@dataclass(frozen=True)
class Task:
    """Work under a name, in a form that can be sent to another process."""

    key: str
    work: Callable[[Sequence[Any]], Any]
    """A module's function with its arguments (`functools.partial`), called with callbacks for the Trainer."""
    failure: Path
    """Where the traceback is kept if it fails."""


def run_tasks(tasks: Sequence[Task], jobs: int, callbacks: Callbacks) -> Iterator[tuple[Task, bool]]:
    """Do the tasks, up to `jobs` at the same time; gives each when it is done, with whether it failed.

    `callbacks` are those for a key; without other processes only. Raises CodeheadError if a process was killed.
    """
    jobs = min(jobs, len(tasks))
    if jobs > 1:
        yield from _in_processes(tasks, jobs)
    else:
        for task in tasks:
            yield task, _run(task, callbacks(task.key))


@library_bars_hidden()
def fails(work: Callable[[], Any], failure: Path) -> bool:
    """Do the work and tell whether it failed; the traceback of a failure is kept in a file, an old one removed."""
    try:
        work()
    except Exception:  # whatever it is belongs to this work alone
        failure.parent.mkdir(parents=True, exist_ok=True)
        failure.write_text(traceback.format_exc(), encoding="utf-8")
        return True
    failure.unlink(missing_ok=True)
    return False


def _run(task: Task, callbacks: Sequence[Any] = ()) -> bool:
    return fails(partial(task.work, callbacks), task.failure)


def _in_processes(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, bool]]:
    threads = max(1, usable_cores() // jobs)
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=start, initargs=(threads,))
    try:
        waiting = {pool.submit(_run, task): task for task in tasks}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool:
        raise CodeheadError(
            f"a process was killed, perhaps for want of memory; run the same command again to go on, "
            f"with less than --jobs {jobs}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Those that this process may run on, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(threads: int) -> None:
    """Begin a process of the pool: its share of the cores, and an end together with its parent's."""
    import torch

    torch.set_num_threads(threads)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Otherwise a process whose parent was killed would go on, beside the one that the next command starts."""
    parent = parent_process()
    assert parent is not None  # this is the process of a pool
    parent.join()
    os._exit(1)
