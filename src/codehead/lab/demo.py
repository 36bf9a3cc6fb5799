"""The protocol `demo` of the catalogue, and the text that it reads."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from codehead.errors import CodeheadError, DataError
from codehead.lab.protocols.protocol import Protocol
from codehead.lab.protocols.runner import Callbacks, Report, run_protocol
from codehead.lab.result import RESULTS, failure_path, replace_file

MOST_THREADS = 4  # the model is so small that more get in each other's way
TEXT = "DEMO_TEXT"  # the variable that stands for the folder of the text, so that results hold no local path


def run_demo(
    protocol: Protocol,
    out: Path,
    *,
    report: Report = lambda key, status: None,
    callbacks: Callbacks = lambda key: [],
) -> Path:
    """Run everything not yet done in `out`; returns the folder of result files.

    Raises DataError if this Python has no sources of its standard library, CodeheadError if a run failed.
    """
    text = out / "text"
    write_text(text)
    torch.set_num_threads(min(torch.get_num_threads(), MOST_THREADS))
    outcome = run_protocol(protocol, out, variables={TEXT: str(text)}, report=report, callbacks=callbacks)
    if outcome.failed:
        raise CodeheadError(
            f"{', '.join(outcome.failed)} failed; see {str(failure_path(out, outcome.failed[0]))!r}, then run the same "
            "command again"
        )
    return out / RESULTS


def write_text(folder: Path) -> None:
    """The documentation and the questions of every split as JSONL files, unless they are there."""
    if (folder / f"questions-{SPLITS[-1]}.jsonl").is_file():
        return
    corpus = read_corpus()
    for split in SPLITS:
        parts = {"text": [{"text": text} for text in corpus.texts[split]], "questions": corpus.pairs[split]}
        for name, records in parts.items():  # if the last file exists, all are complete
            replace_file(folder / f"{name}-{split}.jsonl", "".join(json.dumps(record) + "\n" for record in records))


# A corpus that every Python installation contains: the documentation strings of its standard library.
#
# The sources are parsed, never imported, so reading them runs no code and gives the same corpus on every
# machine with the same version of Python.


SPLITS = ("train", "validation", "test")
SHARE_IN_PERCENT = {"validation": 5, "test": 10}
SKIPPED = {
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "encodings",
    "site-packages",
    "__pycache__",
}
QUESTIONS = {
    "module": ("What is the module `{name}` for?", "Describe the module `{name}`."),
    "class": ("What is the class `{name}`?", "Describe the class `{name}`.", "When would I use `{name}`?"),
    "function": ("What does `{name}` do?", "Explain the function `{name}`.", "Describe `{name}` briefly."),
    "method": (
        "What does the method `{name}` do?",
        "Explain `{name}`.",
        "Describe the method `{name}` briefly.",
    ),
}


@dataclass(frozen=True)
class Documented:
    """One documented name: `kind` is module, class, function or method."""

    name: str
    kind: str
    doc: str

    @property
    def split(self) -> str:
        """train, validation or test, fixed by the name alone."""
        bucket = _digest(self.name) % 100
        test, validation = SHARE_IN_PERCENT["test"], SHARE_IN_PERCENT["validation"]
        return "test" if bucket < test else "validation" if bucket < test + validation else "train"

    @property
    def text(self) -> str:
        """The entry as a document of plain text."""
        return f"{self.kind} {self.name}\n\n{self.doc}"

    @property
    def summary(self) -> str:
        """The first paragraph of the documentation string, on one line."""
        return " ".join(self.doc.split("\n\n")[0].split())

    @property
    def is_public(self) -> bool:
        """Whether no part of the name begins with an underscore."""
        return not any(part.startswith("_") for part in self.name.split("."))

    @property
    def pair(self) -> dict[str, str]:
        """A question and its answer without an instruction template, whose 40 words would take half of the time."""
        questions = QUESTIONS[self.kind]
        question = questions[_digest("question " + self.name) % len(questions)].format(name=self.name)
        return {"prompt": f"Question: {question}\nAnswer:", "completion": f" {self.summary}"}


@dataclass(frozen=True)
class Corpus:
    """Text documents and question/answer pairs by split; a name's text and pair share its split."""

    texts: dict[str, list[str]]
    pairs: dict[str, list[dict[str, str]]]


def read_corpus(root: Path | None = None) -> Corpus:
    """The corpus of the Python sources under `root` (default: the running interpreter's standard library).

    No two entries share a first paragraph, so no answer in the test split is in the training text.
    Raises DataError if the folder holds no documented sources.
    """
    folder = root if root is not None else Path(sysconfig.get_paths()["stdlib"])
    entries = _distinct(_entries(folder))
    if not entries:
        raise DataError(
            f"no documented Python sources under {str(folder)!r}; this Python ships without its standard "
            "library's source files: use one that has them (python.org, a distribution's full package, conda)"
        )
    asked = [entry for entry in entries if entry.is_public and len(entry.summary) >= 20]
    return Corpus(
        texts={split: [entry.text for entry in entries if entry.split == split] for split in SPLITS},
        pairs={split: [entry.pair for entry in asked if entry.split == split] for split in SPLITS},
    )


def _entries(folder: Path) -> Iterator[Documented]:
    for path in _sources(folder):
        parts = path.relative_to(folder).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old sources: invalid escapes and the like
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # a template, not a module
                continue
        yield from _documented(tree, module, "module")


def _sources(folder: Path) -> list[Path]:
    names = [name for name in sorted(sys.stdlib_module_names) if name not in SKIPPED]
    modules = [folder / f"{name}.py" for name in names]
    in_packages = (path for name in names for path in sorted((folder / name).rglob("*.py")))
    packages = [path for path in in_packages if not SKIPPED & set(path.relative_to(folder).parts)]
    return [path for path in [*modules, *packages] if path.is_file()]


def _documented(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str, kind: str) -> Iterator[Documented]:
    doc = ast.get_docstring(node)
    if doc:
        yield Documented(name, kind, doc)
    if kind in ("function", "method"):
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documented(child, f"{name}.{child.name}", "class")
        elif isinstance(child, ast.FunctionDef):
            yield from _documented(child, f"{name}.{child.name}", "method" if kind == "class" else "function")


def _distinct(entries: Iterator[Documented]) -> list[Documented]:
    names: set[str] = set()
    summaries: set[str] = set()
    kept = []
    for entry in entries:
        if entry.name not in names and entry.summary not in summaries:
            kept.append(entry)
        names.add(entry.name)
        summaries.add(entry.summary)
    return kept


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
