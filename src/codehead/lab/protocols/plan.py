"""The runs of a protocol in their order, what each will cost, and which of them are done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from codehead.errors import ConfigurationError
from codehead.lab.protocols.architecture import cell_architecture
from codehead.lab.protocols.backbones import backbone_config, is_trained
from codehead.lab.protocols.cells import cell_config
from codehead.lab.protocols.estimate import Cost, run_cost
from codehead.lab.protocols.preflight import check_data, check_runs, is_finished
from codehead.lab.protocols.preparation import Context, locate
from codehead.lab.protocols.protocol import Cell, Protocol
from codehead.lab.protocols.store import Store
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
    cells = protocol.plan(only)
    check_runs(protocol, cells, context)
    is_prepared = context.folder is None or context.folder.is_dir()
    steps: list[Step] = []
    seen: set[str | None] = {None}
    for cell in cells:
        if cell.backbone not in seen:
            seen.add(cell.backbone)
            run = backbone_config(protocol, str(cell.backbone), context)
            steps.append(Step(f"backbone {cell.backbone}", _cost(run, protocol, cell, context), is_trained(run)))
        run = cell_config(protocol, cell, context)
        has_result = is_finished(protocol, cell, out)
        if has_result and is_prepared:
            check_data(protocol, cell, out, context)
        trains = cell.peer is None
        is_done = has_result or (trains and is_trained(run))  # another protocol may have trained it
        steps.append(Step(cell.key, _cost(run, protocol, cell, context), is_done, trains))
    return steps


def _cost(run: RunConfig, protocol: Protocol, cell: Cell, context: Context) -> Cost | None:
    try:
        return run_cost(run, cell_architecture(protocol, cell, context))
    except ConfigurationError:  # a hub that cannot be reached: the plan goes on without its cost
        return None
