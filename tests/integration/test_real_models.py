"""Real pretrained models, where `make real-models` has brought them."""

from __future__ import annotations

import pytest

from codehead.training.model import load_model
from codehead.training.tokenizer import load_tokenizer


@pytest.mark.slow
@pytest.mark.parametrize(("name", "answer"), [("SmolLM2-135M-Instruct", "Paris"), ("gemma-3-270m", "capital")])
def test_a_real_model_knows_what_it_says(real_model, name, answer):
    folder = str(real_model(name))
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    encoded = tokenizer("The capital of France is", return_tensors="pt")
    ids = model.generate(**encoded, max_new_tokens=8, do_sample=False)
    assert answer in tokenizer.decode(ids[0, -8:])
