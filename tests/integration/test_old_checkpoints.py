"""Checkpoints that version 0.1 wrote (`tests/data/checkpoints-0.1`, tiny and untrained) load to the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import codehead

FOLDERS = sorted((Path(__file__).parents[1] / "data" / "checkpoints-0.1").iterdir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_logits_are_those_of_then(folder, tmp_path):
    expected = load_file(folder / "expected.safetensors")["logits"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert codehead.is_coded(model)
    tokens = torch.arange(3, 11)[None]
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(tokens).logits, model(tokens).logits)
