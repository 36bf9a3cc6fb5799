"""Small checkpoints of every kind, what they answer, and how a changed one is met."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from architectures import VOCAB, make
from mutations import MANIFEST, Mutation
from safetensors import safe_open
from test_screening import screened
from torch import Tensor
from transformers import AutoModelForCausalLM
from workers import RAISED, Verdict, judged

import codehead
from codehead.errors import CodeheadError
from codehead.models.hidden import Statistics
from codehead.screening import calibration
from codehead.screening.model import is_screened
from codehead.training.model import load_model

ROWS = {"dense_rows": [7, 2, 100], "extra_bit_tokens": [1, 7, 9], "extra_bits": 16, "token_bias": True}
LAYERS: dict[str, dict[str, Any]] = {
    "linear": {"code": "minrandom", "bits": 24, "head_params": {"bias": True}},
    "ternary": {"code": "sparse_random", "bits": 44},
    "mtl": {"code": "minrandom", "bits": 12, "head": "mtl", "width": 3, "head_params": {"activation": "relu"}},
    "chain": {"code": "minimal", "head": "chain", "width": 3, "head_params": {"block": 2}},
    "dense rows": {"code": "itq", "bits": 24, "loss": "codeword", **ROWS},
    "recommended": {},
    "one_vs_all": {"code": "one_vs_all", "loss": "codeword"},
    "adaptive": {"code": "one_vs_all", "head": "adaptive", "head_params": {"cutoffs": [20]}, "loss": "codeword",
                 "statistics": Statistics(torch.arange(VOCAB))},
}  # fmt: skip
ROUNDED = {"int8": codehead.to_int8, "int4": codehead.to_int4}
CODED = (*LAYERS, "linear int8", "mtl int8", "chain int4", "dense rows int8", "dense rows int4")
SHARDED = ("dense rows", "dense rows int4")
SCREENED: dict[str, dict[str, Any]] = {
    "screened fast": {"tied": False, "recall": 0.9},
    "screened exact": {"mode": "exact"},
}
OLD = ("converted", "converted-int4", "mtl", "chain", "adaptive", "one-vs-all")
"""Of those that version 0.1 wrote."""
OLD_FOLDER = Path(__file__).parents[1] / "data" / "checkpoints-0.1"
SHARD = "10KB"
SECONDS = 60
"""Until a load is said to hang."""

REFUSED, NAMED, EQUAL = "refused", "refused by transformers, named by the command", "the same answers"
FLOAT = "unprotected: float weights without codehead.json"
SETTING = "unprotected: a setting of the stock model in config.json"
FIRST = "unprotected: a checkpoint of version 0.1, which has no checksums of its own"
SILENT = "SILENTLY WRONG"


def write_checkpoints(place: Path) -> dict[str, Path]:
    """Kind → folder."""
    for verdict in judged([place], _write, 20 * SECONDS):
        if verdict.name != "written":
            raise RuntimeError(verdict.detail)
    return {folder.name: folder for folder in sorted(place.iterdir())}


def _build(kind: str) -> Any:
    """A model with a decision layer, whose parameters are all of consequence."""
    layer, _, rounded = kind.rpartition(" ")
    layer, rounded = (layer, rounded) if rounded in ROUNDED else (kind, "")
    torch.manual_seed(0)
    model: Any = codehead.attach(make("llama", tied=False), **LAYERS[layer])
    for values in (*model.lm_head.parameters(), *model.decision.parameters()):
        torch.nn.init.normal_(values)
    return ROUNDED[rounded](model) if rounded else model


def _write(place: Path) -> Verdict:
    for kind in CODED:
        _build(kind).save_pretrained(place / kind)
    for kind in SHARDED:
        _build(kind).save_pretrained(place / f"{kind}, sharded", max_shard_size=SHARD)
    calibration.FEW = 32  # so that tiny vocabularies leave tokens out
    for kind, options in SCREENED.items():
        screened(**options).save_pretrained(place / kind)
    for kind in OLD:
        shutil.copytree(OLD_FOLDER / kind, place / f"0.1 {kind}", ignore=shutil.ignore_patterns("expected*"))
    return Verdict("written")


def answers(model: Any) -> dict[str, Any]:
    """All that a checkpoint decides: logits, text where the code of a screen finds it, what is said of the layer."""
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        found: dict[str, Any] = {"logits": model.eval()(input_ids=ids).logits}
    if is_screened(model):
        model.generation_config.eos_token_id = None
        found["text"] = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        found |= dict(model.screen.named_buffers())
    if codehead.is_coded(model) or is_screened(model):
        found["entry"] = json.dumps(model.config.quantization_config, sort_keys=True)
    return found


def judge(folders: dict[str, Path], mutation: Mutation) -> Verdict:
    """How a changed checkpoint is met; its copy is removed again."""
    original = folders[mutation.kind]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "changed"
        shutil.copytree(original, folder)
        done = mutation.apply(folder)
        name, detail = _met(original, folder)
    there = "with" if mutation.manifest else "without"
    return Verdict(name, f"{mutation.kind}, {there} {MANIFEST}; {done}: {detail}")


def _met(original: Path, folder: Path) -> tuple[str, str]:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder)
    except CodeheadError as error:
        return REFUSED, str(error)
    except Exception as error:
        return _named(folder, error)
    try:
        found = answers(model)
    except Exception as error:
        return _reason(original, folder) or (RAISED, f"in use: {type(error).__name__}: {error}")
    expected = _expected(original)
    differs = [name for name, value in found.items() if not _same(value, expected.get(name))]
    if not differs:
        return EQUAL, ""
    return _reason(original, folder) or (SILENT, f"{', '.join(differs)} differ")


def _named(folder: Path, raised: Exception) -> tuple[str, str]:
    """What the command makes of a checkpoint for which transformers raises something."""
    try:
        load_model(str(folder), dtype="stored")
    except CodeheadError as error:
        return NAMED, str(error)
    except Exception as error:
        raised = error
    return RAISED, f"{type(raised).__name__}: {raised}"


@functools.cache
def _expected(original: Path) -> dict[str, Any]:
    return answers(AutoModelForCausalLM.from_pretrained(original))


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, Tensor):
        return isinstance(expected, Tensor) and torch.equal(found, expected)
    return bool(found == expected)


def _reason(original: Path, folder: Path) -> tuple[str, str] | None:
    """Why other answers can be no surprise: what was changed has no checksum, and cannot have one."""
    old, new = _config(original), _config(folder)
    described = old.pop("quantization_config") != new.pop("quantization_config", None)
    changed = [name for name in {*old, *new} if old.get(name) != new.get(name)]
    weights = _changed_tensors(original, folder)
    if weights is not None and not weights and not described and changed:
        return SETTING, ", ".join(changed)
    guarded = (folder / MANIFEST).is_file() and weights != {}
    if original.name.startswith("0.1") and not guarded:
        return FIRST, "description" if described else ", ".join(weights or ())
    if weights and all(weights.values()) and not described and not changed and not guarded:
        return FLOAT, ", ".join(weights)
    return None


def _config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def _changed_tensors(original: Path, folder: Path) -> dict[str, bool] | None:
    """Tensor → whether a float stands where a float of that shape stood; None if other tensors are there."""
    old, new = _tensors(original), _tensors(folder)
    if old.keys() != new.keys():
        return None
    return {
        name: values.is_floating_point() and new[name].is_floating_point() and values.shape == new[name].shape
        for name, values in old.items()
        if values.dtype != new[name].dtype or not torch.equal(values, new[name])
    }


def _tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found
