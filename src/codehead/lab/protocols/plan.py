"""The runs of a protocol in their order, what each will cost, and which of them are done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from codehead.errors import ConfigurationError
from codehead.lab.protocols.estimate import Cost, run_cost
from codehead.lab.protocols.preflight import check_data, check_runs, is_finished
from codehead.lab.protocols.preparation import locate
from codehead.lab.protocols.protocol import Protocol
from codehead.lab.protocols.resolve import Cell, resolve
from codehead.lab.protocols.store import Store
from codehead.lab.protocols.trained import is_trained
from codehead.training.config import RunConfig


@dataclass(frozen=True)
class Step:
    """One run that a protocol needs."""

    key: str
    cost: Cost | None  # None: the model's configuration cannot be read from here
    is_done: bool
    trains: bool = True  # False: it compresses the head of another run

    def seconds(self, speed: float) -> float | None:
        """About how long its training takes on a machine of this speed; 0 if none is left, None if nobody can tell."""
        if self.is_done or not self.trains:
            return 0.0
        return None if self.cost is None else self.cost.seconds(speed)


def plan_steps(
    protocol: Protocol, out: Path, store: Store, only: Iterable[str], variables: Mapping[str, str]
) -> list[Step]:
    """Validate everything and list the runs: each backbone before the first cell that starts from it.

    Nothing is written, but an encoder of the hub is fetched. Raises the errors with which `run_protocol` would refuse.
    """
    context = locate(protocol, store, variables)
    cells = resolve(protocol, context, out, protocol.plan(only))
    check_runs(protocol, cells, context)
    backbones = {cell.backbone.name: cell for cell in reversed(cells) if cell.backbone is not None}  # their first cells
    steps: list[Step] = []
    for cell in cells:
        if cell.backbone is not None and backbones[cell.backbone.name] is cell:
            run = cell.backbone.run
            steps.append(Step(cell.backbone.key, _cost(run, cell), is_trained(run)))
        has_result, trains = is_finished(cell), cell.baseline is None
        if has_result and context.is_prepared:
            check_data(cell)
        is_done = has_result or (trains and is_trained(cell.run))  # another protocol may have trained it
        steps.append(Step(cell.key, _cost(cell.run, cell), is_done, trains))
    return steps


def _cost(run: RunConfig, cell: Cell) -> Cost | None:
    try:
        return run_cost(run, cell.architecture)
    except ConfigurationError:  # a hub that cannot be reached: the plan goes on without its cost
        return None
