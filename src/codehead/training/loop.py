"""A loop of optimizer steps that can be stopped at any time and goes on with the numbers of one that never was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from codehead.errors import CheckpointError
from codehead.training.stage_store import Stages

SAVE_STEPS = 50
"""Steps that a killed process loses at most; Ctrl-C loses the one it falls into."""


class ResumableLoop:
    """Optimizer, schedule and random numbers of a loop, kept as the stage `name`; begins where that one was.

    Everything that the loop changes must be a parameter of the optimizer. `done` counts whole steps. `origin` is a
    checksum of what the loop begins with: what was kept of another one is refused.
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
        """Take the step that the gradients say; keep the state every SAVE_STEPS steps."""
        self._whole = False
        self.optimizer.step()
        self.schedule.step()
        self._drawn = self.generator.get_state()
        self.done += 1
        self._whole = True
        if self.done - self.kept >= SAVE_STEPS:
            self.save()

    @contextmanager
    def saved_at_the_end(self) -> Iterator[None]:
        """Keep the state when the loop ends, by Ctrl-C too."""
        try:
            yield
        except KeyboardInterrupt:
            if self._whole:
                self.save()
            raise
        self.save()

    def save(self) -> None:
        """Keep the state, unless it is kept already."""
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
                f"the kept state of {self.name!r} in {str(self.stages.path)!r} has other parameters or another code "
                "than this loop: it was begun by another version of codehead, or by another machine, library or number "
                "of threads, which fits a code differently. Go on where it began, or remove that folder to start again"
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
