"""One edit of a checkpoint at a time: it is refused by an error that names it, or changes no logit."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import VOCAB, make, tokens
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import codehead
from codehead.config import DecisionConfig
from codehead.errors import CheckpointError, ConfigurationError
from codehead.models.hidden import Statistics
from codehead.training.model import load_model

CODED = {"code": "minrandom", "loss": "codeword", "bits": 24}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"code": "minrandom", "bits": 24, "head_params": {"bias": True}},
    "ternary": {"code": "sparse_random", "bits": 44},
    "mtl": {"code": "minrandom", "bits": 12, "head": "mtl", "width": 3, "head_params": {"activation": "relu"}},
    "chain": {"code": "minimal", "head": "chain", "width": 3, "head_params": {"block": 2}},
    "dense rows": {
        **CODED,
        "dense_rows": [7, 2, 100],
        "extra_bit_tokens": [1, 7, 9],
        "extra_bits": 16,
        "token_bias": True,
    },
    "one_vs_all": {"code": "one_vs_all", "bits": None, "loss": "codeword"},
    "adaptive": {"code": "one_vs_all", "head": "adaptive", "head_params": {"cutoffs": [20]}, "loss": "codeword"},
}
KINDS["adaptive"]["statistics"] = Statistics(torch.arange(VOCAB))
ROUNDED = {"int8": codehead.to_int8, "int4": codehead.to_int4}
ALL = [*KINDS, *(f"{kind} {bits}" for kind in ("linear", "mtl", "chain", "dense rows") for bits in ROUNDED)]
QUICK = ("linear", "dense rows int4")
EVERY = 16
"""Which of the edits are tried at once."""

BLOCKS = ("decision", "codebook")
"""Of the description in config.json."""
DECISION = {
    entry.name: entry.default_factory() if entry.default is dataclasses.MISSING else entry.default
    for entry in dataclasses.fields(DecisionConfig)
}
"""What a field of `decision` is if it is not written down."""

Edit = tuple[str, Callable[[Path], None]]
"""What the error should name, and the edit of a folder."""


def build(kind: str) -> Any:
    layer, _, rounded = kind.rpartition(" ")
    layer, rounded = (layer, rounded) if rounded in ROUNDED else (kind, "")
    torch.manual_seed(0)
    model = codehead.attach(make("llama", tied=False), **KINDS[layer])
    for values in (*model.lm_head.parameters(), *model.decision.parameters()):
        torch.nn.init.normal_(values)
    return ROUNDED[rounded](model) if rounded else model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens()).logits


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def described(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """An edit of the entry in config.json."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config["quantization_config"])
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def stored(change: Callable[[dict[str, Tensor]], None], file: str = "model.safetensors") -> Callable[[Path], None]:
    """An edit of the tensors in a file."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file({name: values.contiguous() for name, values in tensors.items()}, folder / file, {"format": "pt"})

    return edit


def others(value: Any) -> Iterator[Any]:
    """What might stand in the place of a value."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, 10**12, -1, 0)
    elif isinstance(value, str):
        yield from (value + "x", "", "linear", "codeword", "bitwise", "loss_linear", "minrandom", "gelu", "0" * 64)
    elif isinstance(value, dict):
        yield {**value, "bias": True}
        yield {**value, "activation": "tanh"}
        for key, inner in value.items():
            yield {other: known for other, known in value.items() if other != key}
            yield from ({**value, key: new} for new in others(inner))
    elif isinstance(value, list):
        yield from ([], [*value, 1], [1])
    yield from (None, [])


def field_edits(entry: dict[str, Any], *place: str) -> Iterator[Edit]:
    """Every field of the description and of its blocks: given other values, and removed; and one added to each."""

    def within(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
        return described(lambda whole: change(functools.reduce(dict.__getitem__, place, whole)))

    defaults = DECISION if place == ("decision",) else {}
    for name, value in {**defaults, **entry}.items():
        if name == "quant_method":
            continue
        if name in entry:
            yield name, within(lambda fields, name=name: fields.pop(name))
        for other in (None, []) if name in BLOCKS else others(value):
            if json.dumps(other) != json.dumps(value):
                yield name, within(lambda fields, name=name, other=other: fields.update({name: other}))
        if name in BLOCKS:
            yield from field_edits(value, name)
    yield "added", within(lambda fields: fields.update(added=1))


def tensor_edits(tensors: dict[str, Tensor], file: str = "model.safetensors") -> Iterator[Edit]:
    """Every tensor of the decision layer: removed, renamed, of another shape; every integer changed; one added."""
    for name, values in tensors.items():
        if not name.startswith(("decision.", "lm_head.")):
            continue
        yield name, stored(lambda held, name=name: held.pop(name), file)
        for new in (f"{name}x", f"model.{name}", f"x.{name}"):
            yield name, stored(lambda held, name=name, new=new: held.update({new: held.pop(name)}), file)
        for shape in (values[:-1], values[None]) if values.ndim else (values[None],):
            yield name, stored(lambda held, name=name, shape=shape: held.update({name: shape.clone()}), file)
        if not values.is_floating_point():
            yield name, stored(lambda held, name=name: held[name].view(-1)[0].bitwise_xor_(1), file)
            yield name, stored(lambda held, name=name: held[name].view(-1)[-1].add_(1), file)
            yield name, stored(lambda held, name=name: held.update({name: held[name].float()}), file)
    for new in ("lm_head.more", "decision.more", "lm_head.parametrizations.weight.original2", "decision.table.weight"):
        yield new, stored(lambda held, new=new: held.update({new: torch.zeros(2)}), file)


ALIASES = {
    "code": "design",
    "decision.table": "codebook in the weights",
    "decision.description": "quantization_config among the weights",
    "decision.corrections.shortlist": "shortlist",
    "decision.corrections.refinement": "extra bits",
    "seal.digest": "seal.digest",
}
"""What errors of content call the fields and tensors whose names contain this."""


def outcome(folder: Path, name: str, expected: Tensor) -> str:
    """ "" if an edit was refused by name, or is of no account; else what is wrong."""
    try:
        found = logits(load(folder))
    except (CheckpointError, ConfigurationError) as error:
        named = [name, *(alias for part, alias in ALIASES.items() if part in name)]
        return "" if any(part in str(error) for part in named) else f"{name} not named: {error}"
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    return "" if torch.equal(found, expected) else f"{name}: silently wrong"


def faults(original: Path, folder: Path, edits: Iterator[Edit], expected: Tensor, manifest: bool) -> list[str]:
    """What is wrong with how edits of a checkpoint are met."""
    found = []
    for name, edit in edits:
        shutil.copytree(original, folder)
        edit(folder)
        if not manifest:
            (folder / "codehead.json").unlink()
        named = next(folder.glob("*.safetensors")).name if manifest and not described_only(original, folder) else name
        found.append(outcome(folder, named, expected))
        shutil.rmtree(folder)
    return [fault for fault in found if fault]


def described_only(original: Path, folder: Path) -> bool:
    return (original / "config.json").read_bytes() != (folder / "config.json").read_bytes()


def every_edit(kind: str, tmp_path: Path, manifest: bool, step: int = 1) -> list[str]:
    model = build(kind)
    model.save_pretrained(tmp_path / "original")
    entry = json.loads((tmp_path / "original" / "config.json").read_text())["quantization_config"]
    edits = [*field_edits(entry), *tensor_edits(load_file(tmp_path / "original" / "model.safetensors"))]
    return faults(tmp_path / "original", tmp_path / "edited", iter(edits[::step]), logits(model), manifest)


@pytest.mark.parametrize("kind", QUICK)
def test_no_edit_is_silently_wrong(kind: str, tmp_path: Path) -> None:
    assert not every_edit(kind, tmp_path, manifest=False, step=EVERY)


@pytest.mark.slow
@pytest.mark.parametrize("manifest", [True, False], ids=["manifest", "bare"])
@pytest.mark.parametrize("kind", ALL)
def test_no_edit_of_any_kind_is_silently_wrong(kind: str, manifest: bool, tmp_path: Path) -> None:
    assert not every_edit(kind, tmp_path, manifest)


def saved(folder: Path, kind: str = "linear", **options: Any) -> Any:
    """A coded model, saved without a manifest."""
    model = build(kind)
    model.save_pretrained(folder, **options)
    (folder / "codehead.json").unlink()
    return model


@pytest.mark.parametrize("kind", ["linear", "dense rows int4", "chain int8", "one_vs_all"])
def test_a_checkpoint_without_seals_and_description_loads(kind: str, tmp_path: Path) -> None:
    model = saved(tmp_path, kind)
    seals = [name for name in load_file(tmp_path / "model.safetensors") if name.endswith("seal.digest")]
    assert len(seals) == {"linear": 1, "one_vs_all": 0}.get(kind, len(seals))
    stored(lambda held: [held.pop(name) for name in [*seals, "decision.description"]])(tmp_path)
    again = load(tmp_path)
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(tmp_path / "again")
    assert {*seals, "decision.description"} <= set(load_file(tmp_path / "again" / "model.safetensors"))


@pytest.mark.parametrize(
    ("decision", "length"),
    [({"bits": 10**9}, 10**9), ({"bits": 10**12}, 24), ({"bits": 25}, 25), ({"dense_rows": 10**12}, 24)],
)
def test_claims_of_a_checkpoint_without_a_description_are_compared_with_its_files(
    decision: dict[str, int], length: int, tmp_path: Path
) -> None:
    saved(tmp_path, "linear int4")
    stored(lambda held: held.pop("decision.description"))(tmp_path)
    described(lambda entry: entry["decision"].update(decision, loss="codeword"))(tmp_path)
    described(lambda entry: entry["codebook"].update(length=length))(tmp_path)
    with pytest.raises(CheckpointError, match=next(iter(decision))):
        load(tmp_path)


def test_a_tensor_is_not_found_in_another_of_its_last_names_and_shape(tmp_path: Path) -> None:
    model = codehead.attach(make("llama"), "minrandom", bits=12, loss="codeword", dense_rows=range(12))
    codehead.to_int4(model).save_pretrained(tmp_path)
    (tmp_path / "codehead.json").unlink()
    name = "lm_head.bits.parametrizations.weight.original1"
    stored(lambda held: held.pop(name))(tmp_path)
    with pytest.raises(CheckpointError, match=f"{name} .*missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
@pytest.mark.parametrize("is_coded", [True, False], ids=["coded", "stock"])
def test_a_missing_tensor_of_the_backbone_is_not_made_up(name: str, is_coded: bool, tmp_path: Path) -> None:
    model = build("linear") if is_coded else make("llama", tied=False)
    model.save_pretrained(tmp_path)
    (tmp_path / "codehead.json").unlink(missing_ok=True)
    stored(lambda held: held.pop(name))(tmp_path)
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path) if is_coded else load_model(str(tmp_path))


def indexed(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("is_coded", [True, False], ids=["coded", "stock"])
def test_an_index_that_names_a_file_outside_the_folder_is_refused(
    is_coded: bool, manifest: bool, tmp_path: Path
) -> None:
    model = build("linear") if is_coded else make("llama", tied=False)
    model.save_pretrained(tmp_path / "own", max_shard_size="10KB")
    shutil.copytree(tmp_path / "own", tmp_path / "others")
    if not manifest:
        (tmp_path / "own" / "codehead.json").unlink(missing_ok=True)
    for place in ("../others", str(tmp_path / "others")):
        shutil.copy(tmp_path / "others" / "model.safetensors.index.json", tmp_path / "own")
        indexed(tmp_path / "own", lambda held, place=place: held.update({k: f"{place}/{v}" for k, v in held.items()}))
        with pytest.raises(CheckpointError, match="outside that folder"):
            load(tmp_path / "own") if is_coded else load_model(str(tmp_path / "own"))


def test_an_index_is_checked_against_the_manifest(tmp_path: Path) -> None:
    build("linear").save_pretrained(tmp_path, max_shard_size="10KB")
    indexed(tmp_path, lambda held: held.update({"more": next(iter(held.values()))}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json has .* bytes"):
        load(tmp_path)


def test_a_shard_that_an_index_forgets_is_missed(tmp_path: Path) -> None:
    saved(tmp_path, max_shard_size="10KB")
    forgotten = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]["model.norm.weight"]
    indexed(tmp_path, lambda held: [held.pop(name) for name in [*held] if held[name] == forgotten])
    with pytest.raises(CheckpointError, match=r"missing|lacks"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": {"a": 1}}'])
def test_an_unreadable_index_is_named(text: str, tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path, max_shard_size="10KB")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is not a readable index"):
        load_model(str(tmp_path))
