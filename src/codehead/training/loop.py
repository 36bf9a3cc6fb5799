"""Long computations that can be stopped at any time and resume with the numbers of one that never stopped: stages saved
in a folder, a progress display, and a loop of optimizer steps, which ends when the loss is no longer finite.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from codehead.errors import CheckpointError, CodeheadError
from codehead.processes import ALONE, Processes, is_main

KINDS = (".json", ".safetensors", ".tmp")  # .json: of version 0.1
NOTES = "notes"
"""The entry of a safetensors header that holds plain values, as JSON."""


Saved = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and plain values."""


class Stages:
    """Results of stages by name: plain values and tensors in `NAME.safetensors`.

    Files are written atomically, so that whatever is there is complete. Without a path nothing is saved. Of several
    processes the first one writes, and all read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def values(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The saved values of a stage, or else computed and saved. Floats come back as they were."""
        return self.kept(name, lambda: ({}, compute()))[1]

    def tensors(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The saved tensors of a stage, on the CPU, or else computed and saved."""
        return self.kept(name, lambda: (compute(), {}))[0]

    def kept(self, name: str, compute: Callable[[], Saved]) -> Saved:
        """The saved tensors and values of a stage, or else computed and saved."""
        found = self.load(name)
        if found is None:
            found = compute()
            self.save(name, *found)
        return found

    def save(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> None:
        """Save tensors, and plain values with them, replacing whatever was saved under that name."""
        if self.path is None or not is_main():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        whole = {key: value.detach().contiguous() for key, value in tensors.items()}
        temporary = self.path / f".{name}.safetensors.tmp"
        save_file(whole, temporary, {NOTES: json.dumps(notes or {})})
        os.replace(temporary, self.path / f"{name}.safetensors")  # a killed process leaves the old file or the new one

    def load(self, name: str) -> Saved | None:
        """The tensors and values that were saved under a name; None if there are none."""
        if self.path is None or not (kept := self.path / f"{name}.safetensors").exists():
            return None
        try:
            with safe_open(kept, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
                return tensors, json.loads(file.metadata()[NOTES])
        except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{str(kept)!r} is damaged ({error}); remove it, and that stage is computed again"
            ) from error

    def room(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU to be filled; if stages are saved, it is a memory-mapped file among them."""
        if self.path is None or not is_main():
            return torch.empty(shape, dtype=dtype)
        self.path.mkdir(parents=True, exist_ok=True)
        mapped = torch.from_file(str(self.path / f".{name}.tmp"), shared=True, size=math.prod(shape), dtype=dtype)
        return mapped.view(shape)

    def exist(self) -> bool:
        """Whether anything is saved."""
        return self.path is not None and self.path.is_dir() and any(self.path.iterdir())

    def remove(self) -> None:
        """Delete everything saved, and the folder unless it holds other files."""
        if self.path is None or not is_main() or not self.path.is_dir():
            return
        for kind in KINDS:
            for file in self.path.glob(f"*{kind}"):
                file.unlink()
        if not any(self.path.iterdir()):
            self.path.rmdir()


Show = Callable[[str, int, int], None]
"""Called with (stage, work done, work in all)."""


@dataclass(frozen=True)
class Work:
    """What a long computation needs: a progress display, stages to save into, and the processes that share it."""

    show: Show = lambda stage, done, total: None
    stages: Stages = field(default_factory=Stages)
    processes: Processes = ALONE


SILENT = Work()
"""Not displayed, not saved, done by one process."""


LINE_SECONDS = 10  # between two lines
RECENT_SECONDS = 120  # the time left is estimated from these: a machine may be busy for a while


class Lines:
    """Progress where there is no terminal: a line for every new stage, then one every ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last = 0.0
        self.first = (0.0, 0)  # when the clock was started, and the work behind then
        self.recent: deque[tuple[float, int]] = deque()  # moments and the work done then, the oldest first
        self.total: int | None = None
        self.stage = ""

    def show(self, stage: str, done: int, total: int, detail: str = "", *, always: bool = False) -> None:
        """Print that `done` of `total` units of work are done, unless the last line is too recent.

        A different total, or less work done than before, means other work, and restarts the clock.
        """
        if not self.recent or done < self.recent[-1][1] or self.total not in (None, total):
            self.first = (time.monotonic(), done)
            self.recent = deque([self.first])
        self.total, now = total, time.monotonic()
        self._note(now, done)
        if stage == self.stage and now - self.last < LINE_SECONDS and not always:
            return
        self.stage, self.last = stage, now
        left = self._seconds_left(total)
        times = f"{_clock(now - self.first[0])} elapsed" + ("" if left is None else f", about {_clock(left)} left")
        self.console.print(
            f"{100 * done / max(total, 1):3.0f}%  {stage}{detail}, {times}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _note(self, now: float, done: int) -> None:
        """Add this moment, and drop those that are no longer recent."""
        self.recent.append((now, done))
        while len(self.recent) > 2 and self.recent[1][0] < now - RECENT_SECONDS:
            self.recent.popleft()

    def _seconds_left(self, total: int) -> float | None:
        """At the rate of the last minutes, or the overall rate if that is higher: one long wait does not mean days.

        None before any work is done.
        """
        now, done = self.recent[-1]
        rates = [(done - before) / (now - then) for then, before in (self.recent[0], self.first) if now > then]
        return (total - done) / max(rates) if max(rates, default=0.0) > 0 else None


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def shown(console: Console | None = None) -> Iterator[Callable[..., None]]:
    """A function to call as `Lines.show`: it moves a bar, by default on stderr, or prints lines without a terminal.

    Of several processes, the first one shows it.
    """
    console = console or Console(stderr=True)
    if not is_main():
        yield lambda stage, done, total, detail="", always=False: None
        return
    if not console.is_terminal:
        yield Lines(console).show
        return
    columns = (TextColumn("{task.description:<34}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, speed_estimate_period=RECENT_SECONDS) as bar:
        task = bar.add_task("starting", total=None)

        def move(stage: str, done: int, total: int, detail: str = "", *, always: bool = False) -> None:
            bar.update(task, description=stage + detail, completed=done, total=total)

        yield move


def refuse_divergence(loss: float, step: int, rate: str = "training.learning_rate") -> None:
    """Raise CodeheadError if a training loss is NaN or infinite; `rate` names the learning rate."""
    if not math.isfinite(loss):
        raise CodeheadError(
            f"the training loss is {loss} at step {step}: the run has diverged, or the model holds NaN. Lower "
            f"{rate}, train in bf16 or float32 rather than fp16, and start the run again with --overwrite"
        )


StepProgress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, mean nats between teacher and student in the last step)."""
SAVE_STEPS = 50
"""The most steps that a stopped process loses; Ctrl-C between two steps loses none."""


class ResumableLoop:
    """Optimizer, schedule and random numbers of a loop, saved as the stage `name`; resumes from that stage.

    Everything that the loop changes must be a parameter of the optimizer. `done` counts completed steps. `origin` is a
    checksum of what the loop begins with: a saved state with another one is refused.
    """

    def __init__(
        self,
        stages: Stages,
        name: str,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        generator: torch.Generator,
        origin: str | None = None,
    ) -> None:
        self.stages, self.name, self.origin = stages, name, origin
        self.optimizer, self.schedule, self.generator = optimizer, schedule, generator
        self.done, self.kept = 0, 0
        self._drawn = generator.get_state()  # after the last whole step
        self._whole = True
        state = stages.load(name)
        if state is not None:
            self._restore(*state)

    def step(self) -> None:
        """Take an optimizer step; save the state every SAVE_STEPS steps."""
        self._whole = False
        self.optimizer.step()
        self.schedule.step()
        self._drawn = self.generator.get_state()
        self.done += 1
        self._whole = True
        if self.done - self.kept >= SAVE_STEPS:
            self.save()

    def run(self, steps: int, learn: Callable[[], float], progress: StepProgress, rate: str) -> None:
        """Take the steps up to `steps`, each with the gradients that `learn` adds; save the state at the end.

        `learn` returns a loss in nats. Ctrl-C saves the state too. CodeheadError, which names the learning `rate`, if a
        loss is not finite.
        """
        try:
            while self.done < steps:
                self.optimizer.zero_grad()
                loss = learn()
                refuse_divergence(loss, self.done, rate)
                self.step()
                progress(self.done, steps, loss)
        except KeyboardInterrupt:
            if self._whole:
                self.save()
            raise
        self.save()

    def save(self) -> None:
        """Save the state, unless it is saved already."""
        if self.done == self.kept:
            return
        tensors = {f"parameters.{i}": values for i, values in enumerate(self._parameters())}
        state = self.optimizer.state_dict()
        for number, moments in state["state"].items():
            tensors |= {f"moments.{number}.{key}": values for key, values in moments.items()}
        notes = {
            "done": self.done,
            "origin": self.origin,
            "groups": state["param_groups"],
            "schedule": self.schedule.state_dict(),
        }
        self.stages.save(self.name, {**tensors, "drawn": self._drawn}, notes)
        self.kept = self.done

    def _parameters(self) -> list[Tensor]:
        return [values for group in self.optimizer.param_groups for values in group["params"]]

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        parameters = self._parameters()
        shapes = {f"parameters.{i}": tuple(values.shape) for i, values in enumerate(parameters)}
        found = {name: tuple(values.shape) for name, values in tensors.items() if name.startswith("parameters.")}
        same = found == shapes and len(notes["groups"]) == len(self.optimizer.param_groups)
        if not same or notes.get("origin") != self.origin:
            raise CheckpointError(
                f"the saved state of {self.name!r} in {str(self.stages.path)!r} has other parameters or another code "
                "than this loop: it was begun by another version of codehead, or by another machine, library or number "
                "of threads, which fits a code differently. Resume where it began, or remove that folder to start again"
            )
        for i, values in enumerate(parameters):
            values.copy_(tensors[f"parameters.{i}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, values in tensors.items():
            if name.startswith("moments."):
                _, number, key = name.split(".", 2)
                moments.setdefault(int(number), {})[key] = values
        self.optimizer.load_state_dict({"state": moments, "param_groups": notes["groups"]})
        self.schedule.load_state_dict(notes["schedule"])
        self.generator.set_state(tensors["drawn"])
        self.done = self.kept = notes["done"]
        self._drawn = tensors["drawn"]
