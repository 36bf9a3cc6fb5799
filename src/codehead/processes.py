"""Several processes that run the same code at the same time: how they share out passes over text, and then agree.

`torchrun` or `accelerate launch` starts them. Forward passes are shared out by batches; each is the one that a single
process would make, and its results come back in order, so that what is learnt from them is the same.
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
"""So long the others wait while the first one learns; the launcher ends them if it fails."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run as one of them sees them; by default it is alone.

    All of them must come to each call of `gathered`, `agreed`, `wait` and `main_first`, in the same order.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the first, which alone writes."""
        return self.rank == 0

    def does(self, number: int) -> bool:
        """Whether the piece of work of this number, counted from 0, falls to this process."""
        return number % self.count == self.rank

    def gathered(self, pieces: list[T]) -> list[T]:
        """The results of all, in the order of their numbers; each process gives those of what it `does`, in order.

        Those of several processes lie on the CPU.
        """
        if self.count == 1:
            return pieces
        from accelerate.utils import gather_object, send_to_device

        numbered = [(self.rank + self.count * i, send_to_device(piece, "cpu")) for i, piece in enumerate(pieces)]
        return [piece for _, piece in sorted(gather_object(numbered), key=itemgetter(0))]

    def agreed(self, value: T) -> T:
        """What the first process gives: computed by each, it may differ in its last digits."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        (value,) = broadcast_object_list([value])
        return value

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process does something, and then the others, which find what it kept."""
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
