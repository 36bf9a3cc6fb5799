"""Time and memory of codes over a whole vocabulary, each built in a separate process.

    python benchmarks/codes_at_scale.py --out results/benchmarks/codes-at-scale-cpu.json

Prototypes are drawn from Gaussian clusters; a tenth of the vocabulary is confused with similar tokens. Peak memory is
the largest resident set of the process, prototypes and Python included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from codehead import codes
from codehead.lab.result import Result
from codehead.training.provenance import provenance, utc_now

SEED = 0
CLUSTERS = 2_000
QWEN, GEMMA = 151_936, 262_144
Job = tuple[int, int, Callable[[np.ndarray], codes.Codebook]]
"""Classes, dimensions of the prototypes, and the function that builds a code from them."""


def grown(vectors: np.ndarray) -> codes.Codebook:
    """ECOC-ONE from one tree to 50 columns, by counts of tokens mistaken for the next one in their cluster."""
    rng = np.random.default_rng(SEED)
    labels = rng.choice(len(vectors), len(vectors) // 10, replace=False)
    choices = (labels + CLUSTERS) % len(vectors)  # of the same cluster
    confusion = (np.concatenate([labels, labels]), np.concatenate([labels, choices]), np.ones(2 * len(labels)))
    return codes.build("ecoc_one", len(vectors), bits=50, prototypes=vectors, confusion=confusion, stop_error=0.0)


def dealt(method: str) -> Callable[[np.ndarray], codes.Codebook]:
    """MinRandom with 50 bits, assigned by a method."""

    def run(vectors: np.ndarray) -> codes.Codebook:
        code = codes.build("minrandom", len(vectors), bits=50, seed=SEED, candidates=1)
        counts = 1 / np.arange(1, len(vectors) + 1)
        return codes.assign(code, method, prototypes=vectors, counts=counts, seed=SEED)

    return run


def built(design: str, **options: Any) -> Callable[[np.ndarray], codes.Codebook]:
    """A design that looks at prototypes."""
    return lambda vectors: codes.build(design, len(vectors), prototypes=vectors, **options)


JOBS: dict[str, Job] = {
    "merged_decoc": (QWEN, 1024, built("merged_decoc")),
    "merged_decoc + 33 parity bits": (QWEN, 1024, built("merged_decoc", parity=33)),
    "merged_forest, 54 bits": (QWEN, 1024, built("merged_forest", bits=54)),
    "itq, 128 bits": (QWEN, 1024, built("itq", bits=128)),
    "itq, 128 bits, V = 262,144": (GEMMA, 640, built("itq", bits=128)),
    "additive, 128 bits": (QWEN, 1024, built("additive", bits=128)),
    "additive, 128 bits, V = 262,144": (GEMMA, 640, built("additive", bits=128)),
    "additive, 512 bits, V = 262,144": (GEMMA, 640, built("additive", bits=512)),
    "ecoc_one, 50 bits": (QWEN, 256, grown),
    "minrandom, assigned by frequency": (QWEN, 256, dealt("frequency")),
    "minrandom, assigned similar_near": (QWEN, 256, dealt("similar_near")),
    "minrandom, assigned similar_far": (QWEN, 256, dealt("similar_far")),
}


def prototypes(num_classes: int, dimensions: int) -> np.ndarray:
    """Vectors (V, d) in float32; class v belongs to cluster v mod CLUSTERS."""
    rng = np.random.default_rng(SEED)
    centres = rng.standard_normal((CLUSTERS, dimensions), dtype=np.float32)
    noise = rng.standard_normal((num_classes, dimensions), dtype=np.float32)
    return centres[np.arange(num_classes) % CLUSTERS] + 0.5 * noise


def measure(name: str) -> dict[str, Any]:
    """Build one code in this process."""
    num_classes, dimensions, make = JOBS[name]
    vectors = prototypes(num_classes, dimensions)
    wall, processor = time.perf_counter(), time.process_time()
    code = make(vectors)
    spent = {"wall_seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    distinct = len(np.unique(code.to_array(), axis=0)) == num_classes
    shape = {"num_classes": num_classes, "dimensions": dimensions, "columns": code.length, "distinct_rows": distinct}
    return {**shape, **spent, "peak_bytes": peak}


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """The table of a document."""
    lines = ["| code | V | d | columns | seconds | peak memory, GiB |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, one in found.items():
        shape = f"{one['num_classes']:,} | {one['dimensions']:,} | {one['columns']}"
        lines.append(f"| {name} | {shape} | {one['wall_seconds']:.0f} | {one['peak_bytes'] / 2**30:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, measure every job in a process, write the result file and a table beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--job", choices=JOBS, help="measure this one here and print it")
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(options.job)))
        return
    started, start = utc_now(), time.monotonic()
    found = {}
    for name in JOBS:
        command = [sys.executable, __file__, "--out", str(options.out), "--job", name]
        found[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(name, found[name], flush=True)
    record = {**provenance(seed=SEED), "started_at": started, "wall_seconds": round(time.monotonic() - start, 1)}
    Result("codes-at-scale", {"clusters": CLUSTERS}, found, record).write(options.out)
    options.out.with_suffix(".md").write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
