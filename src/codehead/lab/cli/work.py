"""How much of a protocol's work is done, in units of about one optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from codehead.lab.protocols.protocol import Entry, Protocol

MEASURING = 40  # a head, in steps
CONVERTING = 250  # a head, measured
TIMING = 60  # all heads
Show = Callable[[str, int, int], None]
"""Called with (what is going on, units done, units in all)."""


class Work:
    """Counts the runs of a protocol, one after the other; what is found done does not count."""

    def __init__(self, protocol: Protocol, show: Show) -> None:
        self.show = show
        self.units = {f"backbone {name}": _steps(part) for name, part in protocol.backbones.items()}
        self.units |= {entry.key: _units(entry) for entry in protocol.entries}
        self.units |= {f"timing {name}".strip(): TIMING for name in protocol.settings if protocol.timing is not None}
        self.done, self.total = 0, sum(self.units.values())

    def report(self, key: str, status: str) -> None:
        """Note that a run has come to its end, or was found there."""
        units = self.units.pop(key, 0)
        if status == "reused":
            self.total -= units
        else:
            self.done += units
        self.show(f"{key} {status}", self.done, self.total)

    def callbacks(self, key: str) -> list[TrainerCallback]:
        """What tells the steps of a run."""
        return [_Steps(lambda steps: self.show(f"training {key}", self.done + steps, self.total))]


class _Steps(TrainerCallback):
    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell(state.global_step)


def _units(entry: Entry) -> int:
    return CONVERTING if entry.baseline is not None else _steps(entry.config) + MEASURING


def _steps(run: dict[str, Any]) -> int:
    return int((run.get("training") or {}).get("max_steps", 0))
