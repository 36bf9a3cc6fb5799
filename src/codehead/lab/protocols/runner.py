"""Runs the cells of a protocol, or shows the plan: resumable, in parallel; a failure stops no other cell."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from codehead.boundaries import library_bars_hidden
from codehead.config import ModelShape
from codehead.errors import CodeheadError, ConfigurationError
from codehead.lab.protocols.cells import is_trained, run_cell, time_cells, timed_entries, train_once
from codehead.lab.protocols.protocol import Protocol
from codehead.lab.protocols.resolve import Cell, check_data, check_runs, is_finished, resolve
from codehead.lab.protocols.store import Context, Store, locate, prepare
from codehead.lab.result import failure_path, result_path
from codehead.training.config import RunConfig
from codehead.training.folder import locked
from codehead.training.model import default_device

Report = Callable[[str, str], None]


@dataclass
class Outcome:
    """The outcome of the cells, by key; `failed` may also name a backbone or a timing."""

    finished: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


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
    """Run everything unfinished: results go to `out/results`, tracebacks to `out/failures`, models to the store.

    Backbones come first, each once; then the cells; then, once all cells of the first seed have a result, their
    times. Problems with the protocol, its data and its encoder are reported before anything is written.

    Args:
        store: folder of prepared data and trained models, which protocols may share; by default `out/store`. It is
            locked: one command at a time uses it.
        only: keep the cells whose key contains one of these strings.
        jobs: processes that train backbones, then run cells, at the same time; 1 stays in this process.
        variables: values of `${NAME}`; by default the environment.
        report: called with (key, "finished" | "reused" | "failed") whenever a cell, `backbone NAME` or
            `timing SETTING` is done.
        callbacks: returns the Trainer callbacks for a key; only without other processes.

    Raises:
        ConfigurationError: a cell's configuration is invalid, `out` holds a result of another one or of other data,
            or another command is using the store.
        DataError: a source does not exist.
        CheckpointError: `out` holds a damaged result.
    """
    out, place = Path(out), Store(store or Path(out) / "store")
    variables = os.environ if variables is None else variables
    entries, context = protocol.plan(only), locate(protocol, place, variables)
    cells = resolve(protocol, context, out, entries)
    check_runs(protocol, cells, context)
    with locked(place.root):
        finished = {cell.key for cell in cells if is_finished(cell)}
        was_prepared = context.is_prepared
        prepare(protocol, context)
        if not was_prepared:  # runs are named after the content of the prepared data
            cells = resolve(protocol, context, out, entries)
        run = _Run(protocol, out, context, jobs, report, callbacks)
        run.reuse([cell for cell in cells if cell.key in finished])
        left = [cell for cell in cells if cell.key not in finished]
        run.train_backbones(left)
        run.run_cells(left)
        run.time()
    return run.outcome


@dataclass(frozen=True)
class _Run:
    """One call of `run_protocol`, over prepared data."""

    protocol: Protocol
    out: Path
    context: Context
    jobs: int
    report: Report
    callbacks: Callbacks
    outcome: Outcome = field(default_factory=Outcome)

    def reuse(self, cells: Sequence[Cell]) -> None:
        """Note the cells that have a result, after checking that all are on the same data."""
        for cell in cells:
            check_data(cell)
        for cell in cells:
            self.outcome.reused.append(cell.key)
            self.report(cell.key, "reused")

    def train_backbones(self, cells: Sequence[Cell]) -> None:
        """Train the backbones that the cells start from, each once."""
        backbones = {cell.backbone.key: cell.backbone.run for cell in cells if cell.backbone is not None}
        for key, run in backbones.items():
            if is_trained(run):
                self.report(key, "reused")
        self._do({key: partial(train_once, run) for key, run in backbones.items() if not is_trained(run)})

    def run_cells(self, cells: Sequence[Cell]) -> None:
        """Train and measure the cells; then the baselines, once the runs whose heads they compress exist."""
        self._run_some([cell for cell in cells if cell.entry.baseline is None])
        baselines = [cell for cell in cells if cell.entry.baseline is not None]
        alone = [cell for cell in baselines if not is_trained(cell.run)]  # they train the run themselves
        self._run_some([cell for cell in baselines if cell not in alone])
        for cell in alone:
            self._run_some([cell])

    def _run_some(self, cells: Sequence[Cell]) -> None:
        """Run cells that may run at the same time."""
        self.outcome.finished.extend(self._do({cell.key: partial(_write_cell, cell) for cell in cells}))

    def time(self) -> None:
        """Time every setting whose cells of the first seed all have a result, whether they were asked for or not."""
        for setting in self.protocol.settings if self.protocol.timing is not None else ():
            entries = timed_entries(self.protocol, setting)
            if all(result_path(self.out, entry.key).is_file() for entry in entries):
                timed = resolve(self.protocol, self.context, self.out, entries)
                if all(is_finished(cell) for cell in timed):
                    key = f"timing {setting}".strip()
                    self._tell(key, fails(partial(time_cells, timed), failure_path(self.out, key)))

    def _do(self, tasks: Tasks) -> list[str]:
        """Run the tasks, in several processes if requested; returns the keys of those that did not fail."""
        done = []
        for key, failed in run_tasks(tasks, self.out, self.jobs, self.callbacks):
            self._tell(key, failed)
            done += [] if failed else [key]
        return done

    def _tell(self, key: str, failed: bool) -> None:
        self.outcome.failed.extend([key] if failed else [])
        self.report(key, "failed" if failed else "finished")


def _write_cell(cell: Cell, callbacks: Sequence[Any]) -> None:
    if cell.backbone is not None and not is_trained(cell.backbone.run):
        name = cell.backbone.name
        raise CodeheadError(f"it starts from the backbone {name!r}, which could not be trained; see its own traceback")
    run_cell(cell, callbacks).write(cell.result)


# Tasks one after the other, or in separate processes; a failure affects only its own task.


Callbacks = Callable[[str], list[Any]]
Tasks = Mapping[str, Callable[[Sequence[Any]], Any]]
"""Key → a module's function with its arguments (`functools.partial`), called with callbacks for the Trainer."""


def run_tasks(tasks: Tasks, out: Path, jobs: int, callbacks: Callbacks) -> Iterator[tuple[str, bool]]:
    """Run the tasks, up to `jobs` at the same time; yields the key of each when it is done, with whether it failed.

    `callbacks` returns those for a key; only without other processes. Raises CodeheadError if a process was killed.
    """
    jobs = min(jobs, len(tasks))
    if jobs > 1:
        yield from _in_processes(tasks, out, jobs)
    else:
        for key, work in tasks.items():
            yield key, fails(partial(work, callbacks(key)), failure_path(out, key))


@library_bars_hidden()
def fails(work: Callable[[], Any], failure: Path) -> bool:
    """Do the work and return whether it failed; the traceback is kept in a file, an old one removed."""
    try:
        work()
    except Exception:  # any error concerns only this work
        failure.parent.mkdir(parents=True, exist_ok=True)
        failure.write_text(traceback.format_exc(), encoding="utf-8")
        return True
    failure.unlink(missing_ok=True)
    return False


def _in_processes(tasks: Tasks, out: Path, jobs: int) -> Iterator[tuple[str, bool]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // jobs)  # of the cores that this process may use
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=start, initargs=(threads,))
    try:
        waiting = {pool.submit(fails, partial(work, ()), failure_path(out, key)): key for key, work in tasks.items()}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool:
        raise CodeheadError(
            f"a process was killed, perhaps out of memory; run the same command again to resume, "
            f"with less than --jobs {jobs}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def start(threads: int) -> None:
    """Set up a process of the pool: its share of the cores, and that it ends with its parent."""
    torch.set_num_threads(threads)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Otherwise a process whose parent was killed would continue, beside those that the next command starts."""
    parent = parent_process()
    assert parent is not None  # this is the process of a pool
    parent.join()
    os._exit(1)


# The plan, shown before it starts: the runs in order, the cost of each, and which are done.


@dataclass(frozen=True)
class Step:
    """One run that a protocol needs."""

    key: str
    cost: Cost | None  # None: the model's configuration cannot be read from here
    is_done: bool
    trains: bool = True  # False: it compresses the head of another run

    def seconds(self, speed: float) -> float | None:
        """Estimated training time on a machine of this speed; 0 if nothing is left, None if unknown."""
        if self.is_done or not self.trains:
            return 0.0
        return None if self.cost is None else self.cost.seconds(speed)


def plan_steps(
    protocol: Protocol, out: Path, store: Store, only: Iterable[str], variables: Mapping[str, str]
) -> list[Step]:
    """Validate everything and list the runs: each backbone before the first cell that starts from it.

    Nothing is written, but an encoder on the hub is downloaded. Raises the errors that `run_protocol` would raise.
    """
    context = locate(protocol, store, variables)
    cells = resolve(protocol, context, out, protocol.plan(only))
    check_runs(protocol, cells, context)
    steps: dict[str, Step] = {}
    for cell in cells:
        if cell.backbone is not None and cell.backbone.key not in steps:
            run, key = cell.backbone.run, cell.backbone.key
            steps[key] = Step(key, _cost(run, cell), is_trained(run))
        has_result, trains = is_finished(cell), cell.entry.baseline is None
        if has_result and context.is_prepared:
            check_data(cell)
        is_done = has_result or (trains and is_trained(cell.run))  # another protocol may have trained it
        steps[cell.key] = Step(cell.key, _cost(cell.run, cell), is_done, trains)
    return list(steps.values())


def _cost(run: RunConfig, cell: Cell) -> Cost | None:
    try:
        return run_cost(run, cell.architecture)
    except ConfigurationError:  # a hub that cannot be reached: the plan omits this cost
        return None


# The estimated cost of a run, before it starts: operations, time on this machine, memory.


EFFICIENCY = 0.35  # of the speed of one large matrix product, in a training step of a small model
FLOAT = 4  # bytes
ADAM = 3 * FLOAT  # gradient and two moments of every trained parameter
ACTIVATIONS = 16  # numbers kept per token, layer and hidden unit for the backward pass


@dataclass(frozen=True)
class Cost:
    """Of one training run, evaluation not included."""

    steps: int | None
    """Optimizer steps; None where they follow from the length of the data."""
    operations_per_step: float
    """Floating-point operations."""
    memory: int
    """Bytes."""

    def seconds(self, speed: float) -> float | None:
        """On a machine that multiplies matrices with `speed` operations per second."""
        return None if self.steps is None else self.steps * self.operations_per_step / (EFFICIENCY * speed)


def run_cost(run: RunConfig, architecture: Any) -> Cost:
    """Cost of training `run`, whose model has the transformers configuration `architecture`.

    Two operations per weight and token forward and four backward (two where the weights are frozen); operations that
    do not multiply weights (attention scores, norms, the optimizer) are not counted in the time.
    """
    architecture = architecture.get_text_config()
    hidden, layers, vocabulary = architecture.hidden_size, architecture.num_hidden_layers, architecture.vocab_size
    everything, body, softmax = _parameters(architecture)
    shape = ModelShape(softmax // vocabulary, vocabulary)
    bits = 0 if run.decision is None else run.decision.length(vocabulary)
    head = softmax if run.decision is None else run.decision.size(shape).head_parameters
    is_wide = run.decision is None or run.decision.loss == "codeword"
    frozen = run.adapt in ("lora", "head")
    trained = head if frozen else everything - softmax + head
    batch = int(run.training.get("per_device_train_batch_size", 8)) * run.data.block_size  # tokens
    kept = ACTIVATIONS * layers * hidden + (2 * vocabulary if is_wide else 0)  # numbers per token
    scored = is_wide and bits < vocabulary  # the outputs of one_vs_all are the scores
    per_token = (4 if frozen else 6) * body + 6 * head + (6 * vocabulary * bits if scored else 0)
    steps = int(run.training.get("max_steps", 0))
    return Cost(
        steps=steps if steps > 0 else None,
        operations_per_step=per_token * batch * int(run.training.get("gradient_accumulation_steps", 1)),
        memory=FLOAT * (everything - softmax + head) + ADAM * trained + FLOAT * batch * kept,
    )


def machine_speed(training: Mapping[str, Any], size: int = 1024, repeats: int = 8) -> float:
    """Operations per second of a float32 matrix product where `training` will run, measured in about a second."""
    a = torch.ones(size, size, device="cpu" if training.get("use_cpu") else default_device())
    (a @ a).sum().item()
    start = time.perf_counter()
    for _ in range(repeats):
        product = a @ a
    product.sum().item()
    return 2 * size**3 * repeats / (time.perf_counter() - start)


def _parameters(architecture: Any) -> tuple[int, int, int]:
    """Parameters of the whole model, of its body without embeddings and head, and of the Softmax head."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(architecture)
    head = model.get_output_embeddings().weight
    others = 0 if head is model.get_input_embeddings().weight else head.numel()
    body = model.num_parameters(exclude_embeddings=True) - others
    return model.num_parameters() - others + head.numel(), body, head.numel()
