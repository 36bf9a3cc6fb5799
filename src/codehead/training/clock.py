"""The wall time of a run, which adds up over the processes that work on it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from codehead.training.folder import RunFolder


class Clock:
    """Keeps the provenance of a run, with the seconds since it `began` (`time.monotonic`), in `run.json`.

    What an earlier process had spent on the run is added. A killed one has spent what was kept last.
    """

    def __init__(self, folder: RunFolder, origin: Mapping[str, Any], began: float) -> None:
        self.folder, self.origin = folder, {**folder.begun_with(), **origin, **folder.spent()}
        self.began = began - self.origin.get("wall_seconds", 0.0)

    def record(self) -> dict[str, Any]:
        """The provenance with the seconds until now."""
        return {"provenance": {**self.origin, "wall_seconds": round(time.monotonic() - self.began, 3)}}

    def keep(self) -> None:
        """Write them to `run.json`, of a run that goes on."""
        self.folder.write("running", self.record())

    @contextmanager
    def kept_when_stopped(self) -> Iterator[None]:
        """Keep them if what is done meanwhile is stopped."""
        try:
            yield
        except BaseException:
            self.keep()
            raise
