"""Checkpoints are changed, commands misused and runs killed, as a seed says; prints how each ended.

python tests/fuzz/fuzzing.py [--seed 0] [--mutations 2000] [--calls 300] [--kills 30]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "fuzz"), str(TESTS / "integration"), str(TESTS)]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import checkpoints
import transformers
from mutations import mutations
from workers import DIED, HANG, RAISED, Verdict, judged

BAD = (HANG, DIED, RAISED, checkpoints.SILENT)
"""Verdicts that nothing may get."""


def fuzz_checkpoints(place: Path, count: int, seed: int) -> list[Verdict]:
    """How changed checkpoints are met."""
    folders = checkpoints.write_checkpoints(place)
    changes = mutations(folders, count, seed)
    return judged(changes, partial(checkpoints.judge, folders), checkpoints.SECONDS)


def table(verdicts: Sequence[Verdict]) -> str:
    """Counts by verdict, and the details of the bad ones."""
    counts = Counter(verdict.name for verdict in verdicts)
    lines = [f"{number:6} {name}" for name, number in counts.most_common()]
    return "\n".join([*lines, *(f"{name}: {detail}" for name, detail in verdicts if name in BAD)])


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    parser = argparse.ArgumentParser()
    for name, default in {"seed": 0, "mutations": 2000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        verdicts = fuzz_checkpoints(Path(place), given.mutations, given.seed)
    print(table(verdicts))


if __name__ == "__main__":
    main()
