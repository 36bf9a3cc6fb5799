"""What a long computation shows: a bar of rich on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from codehead.processes import is_main

LINE_SECONDS = 10
RECENT_SECONDS = 120  # what the time left is reckoned from: a machine may be busy for a while


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
        """Tell that `done` of `total` units of work are done, unless the last line is too young.

        Where another total or less work behind tells of other work, its clock starts anew.
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
        """Keep this moment, and of those before it the recent ones."""
        self.recent.append((now, done))
        while len(self.recent) > 2 and self.recent[1][0] < now - RECENT_SECONDS:
            self.recent.popleft()

    def _seconds_left(self, total: int) -> float | None:
        """At the rate of the last minutes, or of all the time if that is higher: one long wait does not mean days.

        None before any work is done.
        """
        now, done = self.recent[-1]
        rates = [(done - before) / (now - then) for then, before in (self.recent[0], self.first) if now > then]
        return (total - done) / max(rates) if max(rates, default=0.0) > 0 else None


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def shown(console: Console) -> Iterator[Callable[..., None]]:
    """A function to call as `Lines.show`: it moves a bar, or prints lines without a terminal.

    Of several processes, the first one shows it.
    """
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


class RichProgress(TrainerCallback):
    """Shows steps, loss and time left of any Trainer. Pass it through `callbacks=`."""

    def __init__(self, label: str = "training", console: Console | None = None) -> None:
        self.label, self.loss = label, "loss –"
        self.console = console or Console(stderr=True)
        self.under_way = ExitStack()
        self.show: Callable[..., None] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.show = self.under_way.enter_context(shown(self.console))
        self._tell(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < state.max_steps:  # the last step is told when its loss is logged
            self._tell(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        text = " ".join(f"{key} {logs[key]:.4f}" for key in ("loss", "eval_loss") if key in (logs or {}))
        if text:
            self.loss = text
            if state.global_step == state.max_steps:
                self._tell(state, always=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away, also after an interruption; what is evaluated then has a line."""
        self.under_way.close()
        if self.console.is_terminal and is_main():
            self.show = Lines(self.console).show

    def _tell(self, state: Any, *, always: bool = False) -> None:
        if self.show is not None:
            detail = f": step {state.global_step}/{state.max_steps} {self.loss}"
            self.show(self.label, state.global_step, state.max_steps, detail, always=always)
