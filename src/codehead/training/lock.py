"""One process at a time works in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from codehead.errors import ConfigurationError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of a folder; the system lifts the lock of one that was killed.

    A folder that is made for the lock, and in which nothing has come to lie, goes with it. Raises ConfigurationError if
    another process is in the folder.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"another command is at work in {str(folder)!r}; wait for its end, because two would spoil each other's "
            "files, or choose another --out"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open
            (folder / LOCK).unlink()
        lock.release()
        for place in made:
            with suppress(OSError):  # it is not empty
                place.rmdir()
