"""Output folders: one process writes at a time, and checkpoints are written as a whole; and the folder of a run.

That one knows what may be written into it, and where an unfinished run resumes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from codehead.boundaries import library_bars_hidden
from codehead.errors import CheckpointError, CodeheadError, ConfigurationError
from codehead.models import card
from codehead.models.integrity import WEIGHTS as OWN_WEIGHTS
from codehead.models.integrity import shapes_in, verify
from codehead.processes import is_main
from codehead.training.config import RunConfig
from codehead.training.loop import Stages
from codehead.training.provenance import provenance, utc_now

LOCK = ".lock"
STAGE = ".unfinished"
WEIGHTS = ("codehead.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
RECORD = "run.json"
TEMPORARY = f".{RECORD}.tmp"
CHECKPOINTS = "checkpoints"
STAGES = "conversion"
STATE = "trainer_state.json"
"""The file that the Trainer writes last into a checkpoint."""
BEGUN_WITH = {
    "weights": "the model has changed since. Bring the old one back",
    "tokenizer": "it has changed since. Bring the old one back",
    "codebook": "another machine, library or number of threads fits it differently. Resume where the run began",
}
"""Checksums in the provenance of a run, and why each may differ when the run resumes."""
MISSING = object()
UNSET = (None, MISSING)  # a record lacks the keys that are newer than it


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of a folder; the system lifts the lock of a killed process.

    A folder that is created for the lock is removed with it if it is still empty. Raises ConfigurationError if another
    process is using the folder.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"another command is using {str(folder)!r}; wait until it finishes, or choose another --out"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not remove open files
            (folder / LOCK).unlink()
        lock.release()
        for place in made:
            with suppress(OSError):  # it is not empty
                place.rmdir()


def save_whole(model: Any, tokenizer: Any, folder: Path, measured: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint beside the one in a folder, then replace that one; files with other names stay.

    The card shows the metrics `measured` `before` and `after` a conversion; that of a coded model does not stay beside
    a stock one.

    If writing fails, on a full disk for instance, the old checkpoint is unchanged. A process that is killed while the
    files are moved leaves a folder without weights, never a mixture of two models.
    """
    stage = folder / STAGE
    shutil.rmtree(stage, ignore_errors=True)  # left by a killed process
    try:
        with library_bars_hidden():
            model.save_pretrained(stage)
            if measured is not None:
                card.write(stage, model, measured)
            tokenizer.save_pretrained(stage)
        has_card = (stage / card.NAME).exists()
        for file in weight_files(folder):
            file.unlink()
        for file in sorted((path for path in stage.rglob("*") if path.is_file()), key=_order):
            place = folder / file.relative_to(stage)
            place.parent.mkdir(exist_ok=True)
            (card.publish if file.name == card.NAME else os.replace)(file, place)
        if not has_card:
            card.withdraw(folder / card.NAME)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def weight_files(folder: Path) -> list[Path]:
    """The files in a folder that hold or list the weights of a model."""
    return [file for pattern in WEIGHTS for file in folder.glob(pattern)]


def _order(file: Path) -> tuple[bool, str]:
    """Weights last, after their checksums."""
    return any(file.match(pattern) for pattern in WEIGHTS), str(file)


class RunFolder:
    """`output_dir` of one run: `run.json`, `checkpoints/`, and at the end the model and tokenizer.

    While a decision layer learns from the old head, `conversion/` holds its progress. A run that is to `overwrite`
    another resumes nothing. Of several processes, the first one writes. Wall time counts from here on, and includes
    that of the processes whose work is resumed; of a killed one, the time it saved last.
    """

    def __init__(self, config: RunConfig, overwrite: bool = False) -> None:
        self.run, self.overwrite, self.began = config, overwrite, time.monotonic()
        self.origin: dict[str, Any] = {}  # the provenance of this process, and of the one it resumes
        self.earlier: dict[str, Any] = {}
        self.path = Path(os.path.expanduser(config.output_dir))
        self.checkpoints = self.path / CHECKPOINTS
        self.stages = Stages(self.path / STAGES)
        self.config: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep out all processes except those of the same run; a run that achieves nothing leaves nothing behind.

        Raises ConfigurationError if another run is using the folder, or it holds files but no run.
        """
        self.check_foreign()
        if not is_main():
            yield
            return
        with locked(self.path):
            try:
                yield
            finally:
                with suppress(OSError):  # there are checkpoints
                    self.checkpoints.rmdir()

    def check(self) -> None:
        """Check that the run may start or resume here, and note where its numbers come from.

        A run that has saved no work blocks no other. Raises ConfigurationError if the folder, which is `locked`, holds
        a run of another configuration or of other data, or a finished run, and is not to be overwritten.
        """
        self.origin = {**provenance(seed=self.run.seed, sources=self.run.data.sources), "started_at": utc_now()}
        if self.overwrite or self._is_empty():
            return
        where, remedy = f"output_dir {str(self.path)!r}", "choose another output_dir or use --overwrite"
        record = read_record(self.path)
        if record["status"] == "finished":
            self.stages.remove()  # left by a process that was killed after its last record
        elif not self._has_work():
            return
        difference = first_difference(record["config"], self.config)
        if difference:
            raise ConfigurationError(f"{where} holds a run of another configuration: {difference}; {remedy}")
        if record["provenance"]["data"] != self.origin["data"]:
            raise ConfigurationError(f"{where} holds a run over other data: a data file has changed since; {remedy}")
        if record["status"] == "finished":
            raise ConfigurationError(f"{where} holds this run, finished; use --overwrite to repeat it")
        if self.last_checkpoint() is not None or self.stages.exist():
            self.earlier = record["provenance"]

    def check_foreign(self) -> None:
        """Raise ConfigurationError if the model is read from this folder, or it holds files but no run."""
        for name in ("model", "tokenizer"):
            source = self.config.get(name)
            if isinstance(source, str) and self._holds(Path(os.path.expanduser(source)).resolve()):
                raise ConfigurationError(
                    f"output_dir {str(self.path)!r} holds the {name} that this run reads; choose another output_dir"
                )
        if not self._is_empty() and not (self.path / RECORD).exists():
            raise ConfigurationError(
                f"output_dir {str(self.path)!r} is not empty and holds no run; choose another output_dir"
            )

    def _is_empty(self) -> bool:
        """Whether the folder holds nothing but what a process leaves that ends before its first record."""
        if not self.path.is_dir():
            return True
        left = {path.name for path in self.path.iterdir()} - {TEMPORARY, LOCK}
        return not left or (left == {CHECKPOINTS} and self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()))

    def _holds(self, source: Path) -> bool:
        """Whether a run that begins here may remove a file or folder."""
        return source == self.path.resolve() or self.checkpoints.resolve() in (source, *source.parents)

    def clear_work(self) -> None:
        """Remove the stages and checkpoints from which a run would resume; call `check_foreign` first."""
        if not is_main():
            return
        self.stages.remove()
        for checkpoint in _numbered(self.checkpoints):
            _remove(checkpoint)

    def _has_work(self) -> bool:
        """Whether a run has saved any work here."""
        return self.last_checkpoint() is not None or self.stages.exist() or bool(weight_files(self.path))

    @contextmanager
    def begun(self) -> Iterator[Stages]:
        """The stages that precede training; from here on the folder is this run's, and keeps its record if it stops.

        If a CodeheadError ends a new run's stages (a mistake in configuration or data, or divergence), the folder is
        as if nothing had begun, so that it does not block the corrected run; the model of a
        finished run that was to be overwritten is still there.
        """
        record = self.path / RECORD
        earlier = record.read_text(encoding="utf-8") if record.exists() else None
        first = self.overwrite or not self._has_work()
        if self.overwrite:
            self.clear_work()
        if first:
            self.keep()
        try:
            yield self.stages
        except BaseException as error:
            self.keep()
            if first and isinstance(error, CodeheadError) and is_main():
                self.stages.remove()
                record.unlink()
                if earlier is not None:
                    record.write_text(earlier, encoding="utf-8")
            raise

    def begins_with(self, key: str, checksum: str | None) -> None:
        """Note a checksum of BEGUN_WITH; ConfigurationError if the run that would be resumed began with another."""
        self.origin[key] = checksum
        begun = self.earlier.get(key)
        if begun not in (None, checksum):
            raise ConfigurationError(
                f"output_dir {str(self.path)!r} holds a run that began with the {key} {begun}, but here "
                f"it is {checksum}: {BEGUN_WITH[key]}, or use --overwrite"
            )

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; None to start from the beginning."""
        complete = [checkpoint for checkpoint in _numbered(self.checkpoints) if _is_complete(checkpoint)]
        return complete[-1] if complete else None

    def resumed_from(self) -> Path | None:
        """The newest checkpoint, after removing those that a killed process left half-written; None to overwrite all.

        CheckpointError, which says how to resume, if its weights are damaged.
        """
        if self.overwrite:
            return None
        for checkpoint in _numbered(self.checkpoints):
            if is_main() and not _is_complete(checkpoint):
                _remove(checkpoint)
        newest = self.last_checkpoint()
        if newest is not None:
            _check_weights(newest)
        return newest

    def rotate(self, limit: int | None, best: str | None) -> None:
        """Keep `limit` checkpoints, the last and the one named `best` among them; None or 0 keeps all.

        The last is the one of the most steps: file times mean nothing if a clock was changed.
        """
        found = _numbered(self.checkpoints)
        if not is_main() or not limit or limit < 0:
            return
        others = [checkpoint for checkpoint in found[:-1] if checkpoint.name != best]
        for checkpoint in others[: max(0, len(found) - limit)]:
            _remove(checkpoint)

    def best_of(self, checkpoint: Path) -> Path | None:
        """The checkpoint in this folder that was the best when `checkpoint` was written; None if none was.

        The Trainer notes its path, which is outdated if the folder was moved. CheckpointError if it is gone.
        """
        noted = json.loads((checkpoint / STATE).read_text(encoding="utf-8")).get("best_model_checkpoint")
        if noted is None:
            return None
        best = self.checkpoints / Path(noted).name
        if not _is_complete(best):
            raise CheckpointError(
                f"the best checkpoint {str(best)!r} is missing or damaged; copy it back, or use --overwrite to start "
                "again"
            )
        return best

    def provenance(self) -> dict[str, Any]:
        """Where the numbers of the run come from, with the wall time until now."""
        spent = time.monotonic() - self.began + self.earlier.get("wall_seconds", 0.0)
        started = self.earlier.get("started_at", self.origin["started_at"])
        return {**self.earlier, **self.origin, "started_at": started, "wall_seconds": round(spent, 3)}

    def keep(self) -> None:
        """Write the record of a run that is running."""
        self.write("running", {"provenance": self.provenance()})

    def finish(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the record of a finished run, after removing its stages; returns provenance and values."""
        self.stages.remove()
        record = {"provenance": self.provenance(), **values}
        self.write("finished", record)
        return record

    def write(self, status: str, values: Mapping[str, Any]) -> None:
        """Write `run.json` atomically."""
        if not is_main():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        record = {"status": status, "config": self.config, **values}
        temporary = self.path / TEMPORARY
        try:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, self.path / RECORD)
        finally:
            temporary.unlink(missing_ok=True)  # left when the disk is full


def read_record(folder: Path) -> dict[str, Any]:
    """The `run.json` of a folder; CheckpointError if it is missing or damaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        record["status"], record["config"], record["provenance"]["data"]
    except FileNotFoundError:
        raise CheckpointError(f"{str(folder)!r} holds no {RECORD}: it is not the folder of a run") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        path = str(folder / RECORD)
        raise CheckpointError(f"{path!r} is damaged ({error}); remove its folder and start again") from None
    return record


def _check_weights(checkpoint: Path) -> None:
    """Raise CheckpointError, which says how to resume, if weights of a checkpoint are damaged."""
    files = sorted(checkpoint.glob("*.safetensors"))
    try:
        verify(file for file in files if file.match(OWN_WEIGHTS))
        for file in files:
            shapes_in(str(file))
    except CheckpointError as error:
        raise CheckpointError(
            f"{str(checkpoint)!r} is damaged ({error}); remove it to resume from the checkpoint before it, or from the "
            "beginning"
        ) from error


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first key with another value, as `training.seed is 1, was 0`; `output_dir` is ignored."""
    before, after = dict(flattened(old)), dict(flattened(new))
    for key in [*before, *(key for key in after if key not in before)]:
        was, now = before.get(key, MISSING), after.get(key, MISSING)
        if key != "output_dir" and was != now and not (was in UNSET and now in UNSET):
            return f"{key} is {_show(now)}, was {_show(was)}"
    return None


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values with dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(value: Any) -> str:
    return "not set" if value is MISSING else repr(value)


def _numbered(checkpoints: Path) -> list[Path]:
    found = [path for path in checkpoints.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


def _is_complete(checkpoint: Path) -> bool:
    """Whether the checkpoint has the file that the Trainer writes last."""
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint; the first file removed makes it incomplete."""
    (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)
