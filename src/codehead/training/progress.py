"""A progress bar of rich for any Trainer: steps, loss, time left."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class RichProgress(TrainerCallback):
    """Shows a bar on a terminal, and one line per log entry elsewhere. Pass it through `callbacks=`."""

    def __init__(self, label: str = "training", console: Console | None = None) -> None:
        self.label = label
        self.console = console or Console(stderr=True)
        self.bar: Progress | None = None
        self.task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not (state.is_world_process_zero and self.console.is_terminal):
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=state.max_steps, completed=state.global_step, loss="loss –")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        text = " ".join(f"{key} {logs[key]:.4f}" for key in ("loss", "eval_loss") if key in (logs or {}))
        if not text:
            return
        if self.bar is not None:
            self.bar.update(self.task, loss=text)
        elif state.is_world_process_zero:
            step = f"step {state.global_step}/{state.max_steps}"
            self.console.print(f"{self.label}: {step} {text}", highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away, also after an interruption."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
