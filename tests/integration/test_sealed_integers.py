"""Codewords, ids of tokens and rounded weights in memory: what changes them by parts is found before it does harm."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import VOCAB, make, tokens
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoModelForCausalLM

import codehead
from codehead import codes
from codehead.errors import CheckpointError, ConfigurationError

EXTRA = {"loss": "codeword", "dense_rows": [7, 2, 100], "extra_bit_tokens": [1, 7, 9], "extra_bits": 16}
LAYERS: dict[str, dict[str, Any]] = {
    "linear": {"code": "minrandom", "bits": 24},
    "ternary": {"code": "sparse_random", "bits": 44},
    "extra": {"code": "minrandom", "bits": 24, **EXTRA},
}


def build(layer: str = "linear", **options: Any) -> Any:
    torch.manual_seed(0)
    return codehead.attach(make("llama"), **{**LAYERS[layer], **options})


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens()).logits


def expect_refused(model: Any, folder: Path) -> None:
    """Neither used nor saved."""
    for action in (lambda: logits(model), lambda: logits(model), lambda: model.save_pretrained(folder)):
        with pytest.raises(CheckpointError, match=r"seal\.digest"):
            action()
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("loaded", [False, True])
def test_an_average_that_spoils_the_codebook_is_refused(layer: str, loaded: bool, tmp_path: Path) -> None:
    model = build(layer)
    if loaded:
        model.save_pretrained(tmp_path / "saved")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        average.update_parameters(model)
    expect_refused(average.module, tmp_path / "average")
    logits(model)
    model.load_state_dict(average.module.state_dict())
    expect_refused(model, tmp_path / "after")


def test_an_average_that_leaves_the_integers_alone_works(tmp_path: Path) -> None:
    model = build("extra")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        average.update_parameters(model)
    average.module.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_a_soup_in_float_works_and_one_in_bytes_is_refused(tmp_path: Path) -> None:
    model, other = build("extra"), build("extra")
    with torch.no_grad():
        other.lm_head.bits.weight.add_(1)
    a, b = model.state_dict(), other.state_dict()
    soup = build("extra")
    soup.load_state_dict({name: (a[name].float() + b[name].float()) / 2 for name in a})
    assert torch.equal(soup.decision.table.sign_plane, model.decision.table.sign_plane)
    logits(soup)
    soup.load_state_dict({name: (a[name] + b[name]) / 2 for name in a})
    expect_refused(soup, tmp_path / "soup")


@pytest.mark.parametrize(
    "name",
    [
        "table.sign_plane",
        "corrections.shortlist",
        "corrections.refinement.members",
        "corrections.refinement.table.sign_plane",
    ],
)
@pytest.mark.parametrize("replaced", [False, True], ids=["in place", "another object"])
def test_an_edit_is_refused(name: str, replaced: bool, tmp_path: Path) -> None:
    model = build("extra")
    logits(model)
    owner, _, leaf = f"decision.{name}".rpartition(".")
    values = model.get_buffer(f"decision.{name}")
    if replaced:
        setattr(model.get_submodule(owner), leaf, values ^ 1)
    else:
        values[0] ^= 1
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        model.decision.decode(torch.zeros(1, model.decision.num_outputs))
    expect_refused(model, tmp_path / "edited")
    with pytest.raises(CheckpointError, match=r"seal\.digest"):
        codehead.fold(model)


@pytest.mark.parametrize("rounded", [codehead.to_int8, codehead.to_int4])
def test_an_edit_of_rounded_weights_is_refused(rounded: Any, tmp_path: Path) -> None:
    model = rounded(build("extra"))
    logits(model)
    model.lm_head.bits.parametrizations.weight.original0[0, 0] ^= 1
    expect_refused(model, tmp_path / "edited")


def test_a_state_dict_given_to_save_is_checked(tmp_path: Path) -> None:
    model = build()
    state = {name: values.clone() for name, values in model.state_dict().items()}
    state["decision.table.sign_plane"] //= 2
    with pytest.raises(CheckpointError, match=r"decision\.table\.sign_plane"):
        model.save_pretrained(tmp_path / "given", state_dict=state)
    assert not (tmp_path / "given").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_another_codebook_comes_in_by_its_door(packed: bool, tmp_path: Path) -> None:
    model, codebook = build(), codes.build("minrandom", VOCAB, bits=24, seed=5)
    model.decision.packed = packed
    before = logits(model)
    model.decision.replace_codebook(codebook)
    assert model.decision.packed == packed
    assert not torch.equal(logits(model), before)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert again.config.quantization_config["codebook"]["checksum"] == codebook.checksum
    with pytest.raises(ConfigurationError, match="length of the new codebook is 16"):
        model.decision.replace_codebook(codes.build("minrandom", VOCAB, bits=16))


def test_copies_and_casts_keep_their_checksums(tmp_path: Path) -> None:
    model = build("extra")
    for changed in (copy.deepcopy(model), copy.deepcopy(model).double(), copy.deepcopy(model).bfloat16()):
        logits(changed)
        changed.decision.table.sign_plane[0, 0] ^= 1
        expect_refused(changed, tmp_path / "copy")
    logits(model)


def test_a_change_back_is_no_change() -> None:
    model = build()
    expected = logits(model)
    model.decision.table.sign_plane[3, 1] ^= 4
    with pytest.raises(CheckpointError):
        logits(model)
    model.decision.table.sign_plane[3, 1] ^= 4
    assert torch.equal(logits(model), expected)
