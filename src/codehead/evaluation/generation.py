"""Continue a prompt with a checkpoint, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from codehead.errors import ConfigurationError
from codehead.training.data import check_vocabulary
from codehead.training.model import check_length, default_device, load_model, max_length
from codehead.training.tokenizer import load_tokenizer

NEW_TOKENS = 64
"""Tokens of a continuation."""


def generate_text(
    model_name: str,
    prompt: str,
    *,
    write: Callable[[str], Any],
    tokenizer_name: str | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    num_beams: int = 1,
    seed: int = 0,
    packed: bool | None = None,
) -> str:
    """The prompt and its continuation; `write` gets both in pieces (with beams: once, at the end).

    Up to NEW_TOKENS are generated, or as many as the model has positions for, unless `max_new_tokens` says how many.
    Greedy, unless temperature, top_k or top_p asks for sampling. `packed` is that of `load_model`.
    """
    from transformers import TextStreamer, set_seed

    tokenizer = load_tokenizer(tokenizer_name or model_name)
    device = default_device()
    model = load_model(model_name, dtype="stored", packed=packed).eval().to(device)
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
    encoded = tokenizer(prompt, return_tensors="pt").to(device)
    length = encoded.input_ids.shape[1]
    if not length:
        raise ConfigurationError("--prompt is empty, and this tokenizer starts no text by itself; give some text")
    if max_new_tokens is None:
        max_new_tokens = max(1, min(NEW_TOKENS, (max_length(model) or length + NEW_TOKENS) - length))
    check_length(model, max_new_tokens, "--max-new-tokens", length)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling = {} if temperature == 0 else {name: value for name, value in options.items() if value is not None}
    streamer: Any = TextStreamer(tokenizer, skip_special_tokens=True)
    streamer.on_finalized_text = lambda text, stream_end=False: write(text)
    set_seed(seed)
    with torch.no_grad():
        ids = model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=bool(sampling),
            num_beams=num_beams,
            pad_token_id=tokenizer.pad_token_id,
            streamer=streamer if num_beams == 1 else None,
            **sampling,
        )
    text = str(tokenizer.decode(ids[0], skip_special_tokens=True))
    if num_beams > 1:
        write(text)
    return text
