"""What dtype `auto` means on processors with and without half-precision arithmetic."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from architectures import make

import codehead
from codehead.cli.checkpoints import attach
from codehead.training import model as models
from codehead.training.model import load_model

CPU = torch.device("cpu")


@pytest.fixture
def half(tmp_path):
    """The folder of a tiny checkpoint in half precision, coded or not, with int8 weights or not."""

    def save(dtype=torch.bfloat16, coded=False, rounded=False):
        model = make("llama", tied=False)
        if coded:
            model = codehead.attach(model, "minrandom", bits=24)
        model = model.to(dtype)
        if rounded:
            model = codehead.to_int8(model)
        model.save_pretrained(tmp_path / "half")
        return str(tmp_path / "half")

    return save


def has(monkeypatch, **found):
    monkeypatch.setattr(models, "capabilities", lambda: found)


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16", "bf16"])
def test_with_its_arithmetic_a_checkpoint_keeps_its_dtype(half, monkeypatch, name):
    has(monkeypatch, avx2=True, **{name: True})
    assert load_model(half(), dtype="auto", device=CPU).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_it_auto_is_float32_and_says_so(half, monkeypatch, dtype):
    has(monkeypatch, avx2=True, avx512_bf16=False)
    with pytest.warns(UserWarning, match="float32.*--dtype") as told:
        model = load_model(half(dtype), dtype="auto", device=CPU)
    assert len(told) == 1
    assert {values.dtype for values in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["bfloat16", "stored"])
def test_a_dtype_that_was_asked_for_is_kept(half, monkeypatch, dtype):
    has(monkeypatch)
    assert load_model(half(), dtype=dtype, device=CPU).dtype == torch.bfloat16


def test_an_accelerator_keeps_it(half, monkeypatch):
    has(monkeypatch)
    assert load_model(half(), dtype="auto", device=torch.device("cuda")).dtype == torch.bfloat16


def test_a_float32_checkpoint_needs_no_warning(tmp_path, monkeypatch):
    has(monkeypatch)
    make("llama", tied=False).save_pretrained(tmp_path / "full")
    assert load_model(str(tmp_path / "full"), dtype="auto", device=CPU).dtype == torch.float32


@pytest.mark.parametrize("rounded", [False, True])
def test_a_coded_model_is_the_one_that_is_loaded_in_float32(half, monkeypatch, rounded):
    has(monkeypatch)
    folder = half(coded=True, rounded=rounded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model(folder, dtype="auto", device=CPU).eval()
    ids = torch.tensor([[5, 7, 11]])
    expected = load_model(folder, dtype="float32").eval()
    with torch.no_grad():
        torch.testing.assert_close(found(input_ids=ids).logits, expected(input_ids=ids).logits)


def test_attach_saves_what_the_checkpoint_has(monkeypatch, tmp_path, place):
    has(monkeypatch)
    shutil.copytree(place / "model", tmp_path / "model")
    load_model(str(place / "model")).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    attach(str(tmp_path / "model"), tmp_path / "coded", code="minrandom", bits=20)
    assert json.loads((tmp_path / "coded" / "config.json").read_text())["dtype"] == "bfloat16"


def test_torch_tells_of_this_processor():
    assert models.capabilities().get("architecture")
    assert models.is_native(torch.float32)
