"""Processes that run the same code in parallel: how they divide passes over text, and agree on the results.

`torchrun` or `accelerate launch` starts them. Forward passes are divided by batches. A single process would make the
same batches, and results come back in order, so what is learnt from them is the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from operator import itemgetter
from typing import TypeVar

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long the others wait while the first process learns; the launcher ends them if it fails."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as seen by one of them; by default there is only one.

    All of them must make the same calls of `gathered`, `agreed`, `wait` and `main_first`, in the same order.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the first process, the only one that writes."""
        return self.rank == 0

    def does(self, number: int) -> bool:
        """Whether this process does the piece of work `number`, counted from 0."""
        return number % self.count == self.rank

    def gathered(self, pieces: list[T]) -> list[T]:
        """The results of all pieces of work, in order; each process passes those of the pieces it `does`, in order.

        With several processes, the results are on the CPU.
        """
        if self.count == 1:
            return pieces
        from accelerate.utils import gather_object, send_to_device

        numbered = [(self.rank + self.count * i, send_to_device(piece, "cpu")) for i, piece in enumerate(pieces)]
        return [piece for _, piece in sorted(gather_object(numbered), key=itemgetter(0))]

    def agreed(self, value: T) -> T:
        """The value of the first process: those that the processes compute may differ in the last digits."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        (value,) = broadcast_object_list([value])
        return value

    def wait(self) -> None:
        """Wait until all processes get here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process runs the block, then the others, which find what it saved."""
        if self.count == 1:
            yield
            return
        from accelerate import PartialState

        with PartialState().main_process_first():
            yield


ALONE = Processes()


def is_main() -> bool:
    """Whether this process is the first of those that a launcher started, or was started without one."""
    return os.environ.get("RANK", "0") == "0"


def launched(*, on_cpu: bool) -> Processes:
    """The processes that a launcher started, connected to one another for work on the CPU or on accelerators."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes)
