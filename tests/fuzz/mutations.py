"""Single changes of a checkpoint, drawn by a seed: of bytes, of tensors, of headers, of values in JSON, of files."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

MANIFEST = "codehead.json"
VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 2**31, 10**12, -(10**12), 0.5, 1e-30, 1e30, "", "x", "linear", "mtl",
    "chain", "codeword", "bitwise", "minrandom", "one_vs_all", "int4", "gelu", "float16", "llama", "0" * 64, [], [1],
    ["a"], {}, {"a": 1}, {"bias": True},
)  # fmt: skip
"""What may stand in the place of a value."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int32)
STATED = ("F16", "BF16", "I16", "U16", "I32", "F32", "U8", "I8", "BOOL", "F8_E4M3", "X", 3)
"""Dtypes in headers."""


@dataclass(frozen=True)
class Mutation:
    """One change of a checkpoint of some kind."""

    kind: str
    """Of the checkpoint."""
    family: str
    """Of the change, a key of FAMILIES."""
    seed: str
    """Decides everything else."""
    manifest: bool
    """Whether `codehead.json` is there."""
    path: tuple[Any, ...] = ()
    """Of a value in a JSON file: the file's name, then keys."""

    def apply(self, folder: Path) -> str:
        """Change a copy of the checkpoint; says how."""
        if not self.manifest:
            (folder / MANIFEST).unlink()
        return FAMILIES[self.family](Random(self.seed), folder, self.path)


def mutations(folders: Mapping[str, Path], count: int, seed: int) -> list[Mutation]:
    """As many mutations, the same number of every kind; half of them go through all values in JSON files."""
    found: list[Mutation] = []
    drawn = {kind: _of_kind(kind, folder, seed) for kind, folder in folders.items()}
    while len(found) < count:
        found += [next(changes) for changes in drawn.values()]
    return sorted(found[:count], key=lambda mutation: mutation.kind)


def _of_kind(kind: str, folder: Path, seed: int) -> Iterator[Mutation]:
    rng = Random(f"{seed} {kind}")
    paths = [path for file in sorted(folder.glob("*.json")) for path in _paths(json.loads(file.read_text()), file.name)]
    rng.shuffle(paths)
    path = cycle(paths)
    for number, family in enumerate(cycle(name for other in FAMILIES if other != JSON for name in (JSON, other))):
        manifest = rng.random() < 0.5
        yield Mutation(kind, family, f"{seed} {kind} {number}", manifest, next(path) if family == JSON else ())


def _paths(value: Any, *place: Any) -> Iterator[tuple[Any, ...]]:
    if len(place) > 1:
        yield place
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from _paths(inner, *place, key)


# --- values


def _value(rng: Random, folder: Path, path: tuple[Any, ...]) -> str:
    """Give a value in a JSON file another one, remove it, or put one beside it."""
    file, *keys = path
    if not (folder / file).exists():  # the manifest that was taken away: another file, then
        file, *keys = rng.choice([*_paths(json.loads((folder / "config.json").read_text()), "config.json")])
    content = json.loads((folder / file).read_text())
    block = content
    for key in keys[:-1]:
        block = block[key]
    name, old = keys[-1], block[keys[-1]]
    others = [*VALUES, *_near(old)]
    new = rng.choice([other for other in others if json.dumps(other) != json.dumps(old)])
    way = rng.choice(("set", "set", "set", "removed", "added"))
    if way == "removed":
        del block[name]
    else:
        block[f"{name}_" if way == "added" else name] = new
    (folder / file).write_text(json.dumps(content))
    return f"{file}: {'.'.join(map(str, keys))} {way} {new!r}"


def _near(old: Any) -> list[Any]:
    """Values of the type of this one, close to it."""
    if isinstance(old, bool) or old is None:
        return 3 * [not old]
    if isinstance(old, int):
        return 3 * [old + 1, old - 1, 2 * old, str(old)]
    if isinstance(old, float):
        return 3 * [2 * old, -old, str(old)]
    if isinstance(old, str):
        return 3 * [old[:-1], f"{old}x", old.upper(), f"../{old}"]
    return []


# --- bytes


def _bytes(rng: Random, folder: Path, _: Any) -> str:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    file = rng.choice(files + 2 * [name for name in files if name.suffix == ".safetensors"])
    content = bytearray(file.read_bytes())
    start = rng.randrange(len(content))
    size = min(rng.choice((1, 8, 200, 5000)), len(content) - start)
    way = rng.choice(("flip", "flip", "byte", "zeros", "noise", "cut", "end", "more", "swap"))
    if way == "flip":
        content[start] ^= 1 << rng.randrange(8)
    elif way == "byte":
        content[start] = rng.randrange(256)
    elif way == "zeros":
        content[start : start + size] = bytes(size)
    elif way == "noise":
        content[start : start + size] = rng.randbytes(size)
    elif way == "cut":
        del content[start : start + size]
    elif way == "end":
        del content[start:]
    elif way == "more":
        content += rng.randbytes(size)
    else:
        other = rng.randrange(len(content))
        content[start], content[other] = content[other], content[start]
    file.write_bytes(content)
    return f"{file.name}: {way} at {start}, {size} bytes"


# --- tensors


def _tensor(rng: Random, folder: Path, _: Any) -> str:
    """Change tensors in a file that stays a sound one."""
    file = rng.choice(sorted(folder.glob("model*.safetensors")))
    with safe_open(file, "pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    own = [name for name in tensors if name.startswith(("lm_head.", "decision."))]
    name = rng.choice(own if own and rng.random() < 0.7 else sorted(tensors))
    other = rng.choice(sorted(tensors))
    way = rng.choice((*WAYS, "removed", "renamed", "doubled", "swapped"))
    if way == "removed":
        del tensors[name]
    elif way == "renamed":
        new = rng.choice((f"{name}x", f"model.{name}", name.rpartition(".")[2], f"{name}.weight"))
        tensors[new] = tensors.pop(name)
    elif way == "doubled":
        tensors[rng.choice((f"{name}x", f"lm_head.{name}", f"decision.{name}", other))] = tensors[name].clone()
    elif way == "swapped":
        tensors[name], tensors[other] = tensors[other], tensors[name]
    else:
        tensors[name] = WAYS[way](rng, tensors[name])
    save_file({name: values.contiguous().clone() for name, values in tensors.items()}, file, metadata)
    return f"{file.name}: {name} {way}"


def _one_other(rng: Random, values: Tensor) -> Tensor:
    changed = values.clone().flatten()
    if len(changed):
        changed[rng.randrange(len(changed))] += rng.choice((1, 2, 5))
    return changed.view(values.shape)


def _some_bits(rng: Random, values: Tensor) -> Tensor:
    raw = values.clone().contiguous().flatten().view(torch.uint8)
    for _ in range(rng.choice((1, 3)) if len(raw) else 0):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return raw.view(values.dtype).view(values.shape)


WAYS: dict[str, Callable[[Random, Tensor], Tensor]] = {
    "one other": _one_other,
    "some bits": _some_bits,
    "cast": lambda rng, values: values.to(rng.choice(DTYPES)),
    "reinterpreted": lambda rng, values: values.flatten().view(torch.uint8).clone(),
    "flat": lambda rng, values: values.flatten(),
    "deep": lambda rng, values: values[None],
    "shorter": lambda rng, values: values[:-1] if values.ndim else values,
    "longer": lambda rng, values: torch.cat([values, values[-1:]]) if values.ndim else values[None],
    "turned": lambda rng, values: values.T if values.ndim == 2 else values.flip(0) if values.ndim else values,
    "mixed rows": lambda rng, values: values.roll(1, 0) if values.ndim else values,
    "zeros": lambda rng, values: torch.zeros_like(values),
}
"""Tensors in the place of one."""


# --- headers


def _header(rng: Random, folder: Path, _: Any) -> str:
    """Change what the header of a file says of a tensor, and nothing else."""
    file = rng.choice(sorted(folder.glob("model*.safetensors")))
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    way = rng.choice(("dtype", "shape", "offsets", "exchanged", "metadata", "field", "length"))
    if way == "dtype":
        header[name]["dtype"] = rng.choice(STATED)
    elif way == "shape":
        shape = header[name]["shape"]
        shapes = (shape[::-1], [1, *shape], [*shape, 2], [10**12], [-1], [], [0], "all", [2.5])
        header[name]["shape"] = rng.choice(shapes)
    elif way == "offsets":
        start, end = header[name]["data_offsets"]
        offsets = ([start + 1, end + 1], [end, start], [0, end], [start, 10**15], "all")
        header[name]["data_offsets"] = rng.choice(offsets)
    elif way == "exchanged":
        header[name], header[other] = header[other], header[name]
    elif way == "metadata":
        header["__metadata__"] = rng.choice(({}, {"format": "tf"}, {"format": 3}, [1], None))
    elif way == "field":
        del header[name][rng.choice(sorted(header[name]))]
    text = json.dumps(header).encode()
    stated = rng.choice((0, length - 1, 2**40, 2**63)) if way == "length" else len(text)
    file.write_bytes(struct.pack("<Q", stated) + text + content[8 + length :])
    return f"{file.name}: {way} of {name}"


# --- files


def _file(rng: Random, folder: Path, _: Any) -> str:
    files = sorted(folder.iterdir())
    file, other = rng.choice(files), rng.choice(files)
    way = rng.choice(("removed", "emptied", "replaced", "renamed", "copied", "folder", "broken link"))
    copies = ("model.safetensors", "model-00009-of-00009.safetensors", "adapter.safetensors", "pytorch_model.bin")
    if way == "replaced":
        shutil.copy(other, file) if other != file else file.unlink()
    elif way == "copied":
        shutil.copy(file, folder / rng.choice([name for name in copies if name != file.name]))
    else:
        content = file.read_bytes()
        file.unlink()
        if way == "emptied":
            file.write_bytes(b"")
        elif way == "renamed":
            (folder / rng.choice(("model.safetensors", "other.safetensors", "config.json.bak"))).write_bytes(content)
        elif way == "folder":
            file.mkdir()
        elif way == "broken link":
            file.symlink_to(folder / "nothing")
    return f"{file.name}: {way}{f' by {other.name}' if way == 'replaced' else ''}"


JSON = "values in JSON"
FAMILIES: dict[str, Callable[[Random, Path, Any], str]] = {
    JSON: _value,
    "bytes": _bytes,
    "tensors": _tensor,
    "headers": _header,
    "files": _file,
}
