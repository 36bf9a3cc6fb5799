"""Runs the cells of a protocol: resumable, in parallel, and one failure stops nothing but itself."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from codehead.errors import CodeheadError, ConfigurationError
from codehead.evaluation.encoder import find_encoder
from codehead.evaluation.result import Result, canonical_json
from codehead.protocols.backbones import train_backbone
from codehead.protocols.cells import cell_config, result_config, run_cell
from codehead.protocols.preparation import Context, prepare
from codehead.protocols.protocol import Cell, Protocol
from codehead.protocols.store import Store
from codehead.protocols.timing import time_cells
from codehead.training.provenance import file_records
from codehead.training.quiet import library_bars_hidden
from codehead.training.sources import check_source

RESULTS = "results"
TOLD_APART = ("description",)  # what a result says of its protocol without depending on it
Report = Callable[[str, str], None]
Callbacks = Callable[[str], list[Any]]


@dataclass
class Outcome:
    """What became of the cells, by key; `failed` may also name a backbone or a timing."""

    finished: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to run one cell."""

    protocol: Protocol
    cell: Cell
    out: Path
    context: Context


def run_protocol(
    protocol: Protocol,
    out: str | Path,
    *,
    store: str | Path | None = None,
    only: Iterable[str] = (),
    jobs: int = 1,
    variables: Mapping[str, str] | None = None,
    report: Report = lambda key, status: None,
    callbacks: Callbacks = lambda key: [],
) -> Outcome:
    """Run what is not finished yet: results go to `out/results`, tracebacks to `out/failures`, models to the store.

    Backbones come first, each once; then the cells; then, once all cells of the first seed have a result, their
    times.

    Args:
        store: folder of prepared data and trained models, which protocols may share; by default `out/store`.
        only: keep the cells whose key contains one of these strings.
        jobs: processes that run cells at the same time; 1 runs them in this process.
        variables: what `${NAME}` stands for; by default the environment.
        report: called with (key, "finished" | "reused" | "failed") whenever a cell, `backbone NAME` or
            `timing SETTING` is done.
        callbacks: gives the Trainer callbacks for a key; for cells only without further processes.

    Raises:
        ConfigurationError: a cell's configuration is invalid, or `out` holds a result of another one or of other data.
        DataError: a source does not exist.
        CheckpointError: `out` holds a damaged result.
    """
    out = Path(out)
    cells = protocol.plan(only)
    if protocol.answers is not None:  # what cannot be scored in the end is told before any training
        find_encoder(protocol.answers.encoder, protocol.answers.encoder_layers)
    finished = [cell for cell in cells if is_finished(protocol, cell, out)]
    context = prepare(protocol, Store(store or out / "store"), os.environ if variables is None else variables)
    for cell in finished:
        _check_data(protocol, cell, out, context)
    todo = [Job(protocol, cell, out, context) for cell in cells if cell not in finished]
    _check(todo)
    outcome = Outcome(reused=[cell.key for cell in finished])
    for key in outcome.reused:
        report(key, "reused")
    todo = _with_backbones(todo, outcome, report, callbacks)
    for cell, failure in _in_processes(todo, jobs) if jobs > 1 else _in_order(todo, callbacks):
        (outcome.failed if failure else outcome.finished).append(cell.key)
        report(cell.key, "failed" if failure else "finished")
    _time(protocol, context, out, outcome, report)
    return outcome


def result_path(out: Path, cell: Cell) -> Path:
    """Where the result of a cell is written."""
    return out / RESULTS / f"{_file_name(cell.key)}.json"


def failure_path(out: Path, key: str) -> Path:
    """Where the traceback of what failed is written."""
    return out / "failures" / f"{_file_name(key)}.txt"


def is_finished(protocol: Protocol, cell: Cell, out: Path) -> bool:
    """Whether the cell has a result; ConfigurationError if it is one of another configuration."""
    path = result_path(out, cell)
    if not path.is_file():
        return False
    found, wanted = Result.read(path).config, result_config(protocol, cell)
    if canonical_json(_essential(found)) != canonical_json(_essential(wanted)):
        raise ConfigurationError(
            f"{str(path)!r} was measured with another configuration of {cell.key!r}; remove it or choose another --out"
        )
    return True


def _essential(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in TOLD_APART}


def _file_name(key: str) -> str:
    return key.replace("/", "--").replace(" ", "-")


def _check_data(protocol: Protocol, cell: Cell, out: Path, context: Context) -> None:
    """Refuse a result over other data, which its configuration, free of local paths, does not tell apart."""
    path = result_path(out, cell)
    if Result.read(path).provenance["data"] != file_records(cell_config(protocol, cell, context).data.sources):
        raise ConfigurationError(
            f"{str(path)!r} was measured on other data: a file has changed since; remove it or choose another --out"
        )


def _check(todo: list[Job]) -> None:
    """Validate configuration and sources of every cell; two that are the same run would write into one folder."""
    folders: dict[str, str] = {}
    for job in todo:
        config = cell_config(job.protocol, job.cell, job.context)
        folder = config.output_dir
        if folder in folders:
            raise ConfigurationError(f"{folders[folder]!r} and {job.cell.key!r} are the same run; remove one of them")
        folders[folder] = job.cell.key
        for source in config.data.sources:
            check_source(source)


def _with_backbones(todo: list[Job], outcome: Outcome, report: Report, callbacks: Callbacks) -> list[Job]:
    """Train the backbones that the jobs start from; returns the jobs whose backbone is there."""
    first = {job.cell.backbone: job for job in reversed(todo)}
    missing = {name for name, job in first.items() if name is not None and _backbone_fails(job, report, callbacks)}
    outcome.failed += [f"backbone {name}" for name in sorted(missing)]
    for job in todo:
        if job.cell.backbone in missing:
            _guarded(job.out, job.cell.key, partial(_refuse_without, job.cell.backbone))
            outcome.failed.append(job.cell.key)
            report(job.cell.key, "failed")
    return [job for job in todo if job.cell.backbone not in missing]


def _backbone_fails(job: Job, report: Report, callbacks: Callbacks) -> bool:
    name = str(job.cell.backbone)
    key = f"backbone {name}"
    failure = _guarded(job.out, key, lambda: train_backbone(job.protocol, name, job.context, callbacks(key)))
    report(key, "failed" if failure else "finished")
    return bool(failure)


def _refuse_without(backbone: str | None) -> None:
    raise CodeheadError(f"it starts from the backbone {backbone!r}, which could not be trained; see its own traceback")


def _time(protocol: Protocol, context: Context, out: Path, outcome: Outcome, report: Report) -> None:
    """Time every setting whose cells of the first seed all have a result."""
    for setting in protocol.settings if protocol.timing is not None else ():
        cells = [cell for cell in protocol.plan() if (cell.setting, cell.seed) == (setting, protocol.seeds[0])]
        if not all(is_finished(protocol, cell, out) for cell in cells):
            continue
        key = f"timing {setting}".strip()
        failure = _guarded(out, key, partial(time_cells, protocol, setting, context, out / RESULTS))
        outcome.failed += [key] if failure else []
        report(key, "failed" if failure else "finished")


def _in_order(todo: list[Job], callbacks: Callbacks) -> Iterator[tuple[Cell, str]]:
    for job in todo:
        yield job.cell, _run(job, callbacks(job.cell.key))


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
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Otherwise a process whose parent was killed would go on, beside the one that the next command starts."""
    parent = parent_process()
    assert parent is not None  # this is the process of a pool
    parent.join()
    os._exit(1)


def _run(job: Job, callbacks: list[Any] | None = None) -> str:
    """Run one cell and write its result; returns the traceback of a failure."""

    def work() -> None:
        result = run_cell(job.protocol, job.cell, job.context, callbacks or ())
        result.write(result_path(job.out, job.cell))

    return _guarded(job.out, job.cell.key, work)


@library_bars_hidden()
def _guarded(out: Path, key: str, work: Callable[[], Any]) -> str:
    """Do the work; the traceback of a failure is kept in a file and returned, otherwise the return is empty."""
    path = failure_path(out, key)
    try:
        work()
    except Exception:  # whatever it is belongs to this key alone
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc(), encoding="utf-8")
        return path.read_text(encoding="utf-8")
    path.unlink(missing_ok=True)
    return ""
