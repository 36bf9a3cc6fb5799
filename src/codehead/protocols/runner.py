"""Runs the cells of a protocol: resumable, in parallel, and one failure stops nothing but itself."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from codehead.errors import CodeheadError, ConfigurationError
from codehead.evaluation.result import Result, canonical_json
from codehead.protocols.cells import cell_config, result_config, run_cell
from codehead.protocols.preparation import prepare
from codehead.protocols.protocol import Cell, Protocol
from codehead.training.quiet import library_bars_hidden

RESULTS = "results"
Report = Callable[[Cell, str], None]


@dataclass
class Outcome:
    """What became of the cells, by key."""

    finished: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to run one cell."""

    protocol: Protocol
    cell: Cell
    out: Path
    shared: dict[str, Any]
    variables: dict[str, str]


def run_protocol(
    protocol: Protocol,
    out: str | Path,
    *,
    only: Iterable[str] = (),
    jobs: int = 1,
    variables: Mapping[str, str] | None = None,
    report: Report = lambda cell, status: None,
    callbacks: Callable[[Cell], list[Any]] = lambda cell: [],
) -> Outcome:
    """Run what is not finished yet, into `out/results` (measured), `out/runs` (trained) and `out/failures`.

    Args:
        only: keep the cells whose key contains one of these strings.
        jobs: processes that run cells at the same time; 1 runs them in this process.
        variables: what `${NAME}` stands for; by default the environment.
        report: called with (cell, "finished" | "reused" | "failed") whenever one is done.
        callbacks: gives the Trainer callbacks of a cell; only without further processes.

    Raises:
        ConfigurationError: a cell's configuration is invalid, or `out` holds a result of another one.
    """
    out = Path(out)
    variables = dict(os.environ if variables is None else variables)
    cells = protocol.plan(only)
    shared = prepare(protocol, out / "prepared", variables)
    todo = [Job(protocol, cell, out, shared, variables) for cell in cells if not is_finished(protocol, cell, out)]
    for job in todo:
        cell_config(job.cell, out, shared, variables)
    outcome = Outcome()
    waiting = {job.cell.key for job in todo}
    for cell in cells:
        if cell.key not in waiting:
            outcome.reused.append(cell.key)
            report(cell, "reused")
    for cell, failure in _in_processes(todo, jobs) if jobs > 1 else _in_order(todo, callbacks):
        (outcome.failed if failure else outcome.finished).append(cell.key)
        report(cell, "failed" if failure else "finished")
    return outcome


def result_path(out: Path, cell: Cell) -> Path:
    """Where the result of a cell is written."""
    return out / RESULTS / f"{cell.key.replace('/', '--')}.json"


def failure_path(out: Path, cell: Cell) -> Path:
    """Where the traceback of a failed cell is written."""
    return out / "failures" / f"{cell.key.replace('/', '--')}.txt"


def is_finished(protocol: Protocol, cell: Cell, out: Path) -> bool:
    """Whether the cell has a result; ConfigurationError if it is one of another configuration."""
    path = result_path(out, cell)
    if not path.is_file():
        return False
    if canonical_json(Result.read(path).config) != canonical_json(result_config(protocol, cell)):
        raise ConfigurationError(
            f"{str(path)!r} was measured with another configuration of {cell.key!r}; remove it or choose another --out"
        )
    return True


def _in_order(todo: list[Job], callbacks: Callable[[Cell], list[Any]]) -> Iterator[tuple[Cell, str]]:
    for job in todo:
        yield job.cell, _run(job, callbacks(job.cell))


def _in_processes(todo: list[Job], jobs: int) -> Iterator[tuple[Cell, str]]:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_start, initargs=(threads,))
    try:
        waiting = {pool.submit(_run, job): job.cell for job in todo}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool:
        raise CodeheadError(
            f"a process was killed, perhaps for want of memory; run the same command again to go on, "
            f"with less than --jobs {jobs}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


@library_bars_hidden()
def _run(job: Job, callbacks: list[Any] | None = None) -> str:
    """Run one cell and write its result; returns the traceback of a failure, which is also kept in a file."""
    failure = failure_path(job.out, job.cell)
    folder = job.out / "runs" / job.cell.key
    try:
        result = run_cell(job.protocol, job.cell, folder, job.shared, job.variables, callbacks or ())
        result.write(result_path(job.out, job.cell))
    except Exception:  # whatever it is belongs to this cell alone
        failure.parent.mkdir(parents=True, exist_ok=True)
        failure.write_text(traceback.format_exc(), encoding="utf-8")
        return failure.read_text(encoding="utf-8")
    failure.unlink(missing_ok=True)
    return ""
