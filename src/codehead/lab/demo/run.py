"""The protocol `demo` of the catalogue, and the text that it reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from codehead.errors import CodeheadError
from codehead.lab.demo.corpus import SPLITS, read_corpus
from codehead.lab.protocols.layout import RESULTS, failure_path
from codehead.lab.protocols.pool import Callbacks
from codehead.lab.protocols.protocol import Protocol
from codehead.lab.protocols.runner import Report, run_protocol

TEXT = "DEMO_TEXT"  # the variable that stands for the folder of the text, so that results hold no local path


def run_demo(
    protocol: Protocol,
    out: Path,
    *,
    report: Report = lambda key, status: None,
    callbacks: Callbacks = lambda key: [],
) -> Path:
    """Run whatever is not done yet in `out`; returns the folder of result files.

    Raises DataError if this Python has no sources of its standard library, CodeheadError if a run failed.
    """
    text = out / "text"
    write_text(text)
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
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        _write(folder / f"text-{split}.jsonl", ({"text": text} for text in corpus.texts[split]))
        _write(folder / f"questions-{split}.jsonl", map(_record, corpus.pairs[split]))


def _record(pair: dict[str, str]) -> dict[str, str]:
    """A question in a short form: an instruction template of 40 words would take half of the time."""
    return {"prompt": f"Question: {pair['instruction']}\nAnswer:", "completion": " " + pair["output"]}


def _write(path: Path, records: Iterable[dict[str, str]]) -> None:
    temporary = path.with_suffix(".tmp")  # the last file, once it is there, says that all are complete
    temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    os.replace(temporary, path)
