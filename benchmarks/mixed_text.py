"""Text of several kinds for measuring real models: text that a code is fitted to, and unseen text.

    python benchmarks/mixed_text.py DATA --out FOLDER

Of `DATA` (dolly/train.jsonl, wikitext2/valid.txt, books/*.txt, alpaca/alpaca.json, multi30k/train.de.gz,
tinystories/stories.jsonl) and of Python's standard library it writes `mix.jsonl`, passages of Dolly, WikiText and books
in random order; `DOMAIN.jsonl` for each kind; and `prompts.jsonl`, the beginnings of passages that are in none of these
files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SEED = 0
PASSAGE = 1200
"""Characters, about 300 tokens."""
MIXED = ("dolly", "wikitext", "books")
PASSAGES = {"mix": 400, "prompts": 40}
"""Passages per kind in the mixture, and prompts per kind; the rest goes into the files of the kinds."""
MOST = 60
"""Passages in the file of a kind."""
PROMPT = 160
"""Characters."""


def kinds(data: Path) -> dict[str, list[str]]:
    """Passages of every kind, in random order."""
    library = Path(sysconfig.get_path("stdlib"))
    sources = {
        "dolly": (one["instruction"] + "\n" + one["output"] for one in _lines(data / "dolly/train.jsonl")),
        "wikitext": _cut((data / "wikitext2/valid.txt").read_text(encoding="utf-8")),
        "books": (part for book in sorted(data.glob("books/*.txt")) for part in _cut(book.read_text(encoding="utf-8"))),
        "alpaca": (one["output"] for one in json.loads((data / "alpaca/alpaca.json").read_text(encoding="utf-8"))),
        "german": _cut(gzip.decompress((data / "multi30k/train.de.gz").read_bytes()).decode()),
        "stories": (one["text"] for one in _lines(data / "tinystories/stories.jsonl")),
        "code": (part for file in sorted(library.glob("*.py")) for part in _cut(file.read_text(encoding="utf-8"))),
    }
    found = {}
    for kind, passages in sources.items():
        some = [text.strip() for text in passages if len(text.strip()) >= PROMPT]
        random.Random(SEED).shuffle(some)
        found[kind] = some
    return found


def _lines(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _cut(text: str) -> Iterator[str]:
    for start in range(0, len(text), PASSAGE):
        yield text[start : start + PASSAGE]


def files(data: Path) -> dict[str, list[dict[str, str]]]:
    """The content of every file."""
    prompts, mix, found = [], [], {}
    for kind, passages in kinds(data).items():
        own, rest = passages[: PASSAGES["prompts"]], passages[PASSAGES["prompts"] :]
        prompts += [{"prompt": text[:PROMPT], "kind": kind} for text in own]
        if kind in MIXED:
            mix += [{"text": text} for text in rest[: PASSAGES["mix"]]]
            rest = rest[PASSAGES["mix"] :]
        found[kind] = [{"text": text} for text in rest[:MOST]]
    random.Random(SEED).shuffle(mix)
    return {"mix": mix, "prompts": prompts, **found}


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in files(options.data).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (options.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}.jsonl: {len(rows)} rows, {len(text):,} characters")


if __name__ == "__main__":
    main()
