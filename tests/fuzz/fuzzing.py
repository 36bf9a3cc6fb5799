"""Checkpoints are changed, commands misused and runs killed, as a seed says; prints how each ended.

python tests/fuzz/fuzzing.py [--seed 0] [--mutations 2000] [--calls 300] [--kills 30]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "fuzz"), str(TESTS / "integration"), str(TESTS)]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import checkpoints  # noqa: E402
import commands  # noqa: E402
from mutations import mutations  # noqa: E402
from workers import DIED, HANG, RAISED, Verdict, judged  # noqa: E402

BAD = (HANG, DIED, RAISED, checkpoints.SILENT, commands.ACCEPTED, commands.OTHER)
"""Verdicts that nothing may get."""
Fuzz = Callable[[Path, int, int], list[Verdict]]
"""Does so many things, drawn by a seed, in an empty folder."""


def fuzz_checkpoints(place: Path, count: int, seed: int) -> list[Verdict]:
    """How changed checkpoints are met."""
    folders = checkpoints.write_checkpoints(place)
    return judged(mutations(folders, count, seed), partial(checkpoints.judge, folders), checkpoints.SECONDS)


KINDS: dict[str, tuple[Fuzz, int]] = {
    "mutations": (fuzz_checkpoints, 2000),
    "calls": (commands.fuzz_calls, 300),
    "kills": (commands.fuzz_kills, 30),
}
"""What is done, and how often."""


def fuzz(kind: str, place: Path, count: int, seed: int) -> list[Verdict]:
    """The verdicts on so many things of a kind; prints their counts, and the details of what is bad."""
    before = os.getcwd()
    try:
        verdicts = KINDS[kind][0](place, count, seed)
    finally:
        os.chdir(before)
    counts = Counter(verdict.name for verdict in verdicts)
    print(f"{len(verdicts)} {kind}, seed {seed}")
    print(*(f"{number:6} {name}" for name, number in counts.most_common()), sep="\n")
    print(*(f"{name}: {detail}" for name, detail in verdicts if name in BAD), sep="\n", flush=True)
    return verdicts


def bad(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that nothing may get."""
    return [verdict for verdict in verdicts if verdict.name in BAD]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in {"seed": 0, **{kind: count for kind, (_, count) in KINDS.items()}}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = vars(parser.parse_args())
    found: list[Verdict] = []
    for kind in KINDS:
        if given[kind]:
            with tempfile.TemporaryDirectory() as place:
                found += bad(fuzz(kind, Path(place), given[kind], given["seed"]))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
