"""What a model weighs and the text that it writes; `metrics` measures how well it predicts.

Sizes are those of the decision layer of a model, and what those of the paper would have (see `codehead.config.size`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from codehead.config import DecisionConfig, DecisionSize, ModelShape
from codehead.config.size import UNPACKED_BYTES, packed_row
from codehead.errors import ConfigurationError
from codehead.models.rounding import rounded_weights
from codehead.models.surgery import is_coded

USUAL = (
    DecisionConfig(code="one_vs_all", loss="codeword"),
    DecisionConfig(code="minimal"),
    DecisionConfig(code="minrandom", bits=50),
    DecisionConfig(code="minrandom", bits=100),
    DecisionConfig(code="minimal", head="mtl", width=512),
    DecisionConfig(code="minrandom", bits=50, head="mtl", width=512),
)
"""Softmax and the configurations of the paper (protocol 1 and the length 100 of protocol 3)."""
CHECKSUM = "seal.digest"
"""Of integers: no part of a size."""


def model_size(model: nn.Module, *, weight_bytes: int | None = None) -> DecisionSize:
    """The sizes of a model's decision layer, coded or stock; by default with the bytes of its own dtype."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if weight_bytes is None:
        weight_bytes = next(head.parameters()).element_size()
    parameters = sum(p.numel() for p in head.parameters())
    if not is_coded(model):
        return DecisionSize.of(parameters, parameters * weight_bytes, 0, 0)
    decision: Any = model.decision
    table, extras = decision.table, decision.corrections
    refinement = None if extras is None else extras.refinement
    named = [*decision.named_buffers(), *head.named_buffers()]
    other = [values.nbytes for name, values in named if not name.startswith("table.") and not name.endswith(CHECKSUM)]
    parameters += sum(p.numel() for p in decision.parameters())
    planes = 0 if table.is_implicit else 2 if table.is_ternary else 1
    symbols = planes * table.num_classes * table.length
    symbols += 0 if refinement is None else refinement.num_tokens * refinement.length
    size = DecisionSize.of(
        parameters + rounded_weights(head) + rounded_weights(decision),
        parameters * weight_bytes + sum(other),
        planes * table.num_classes * packed_row(table.length),
        symbols * UNPACKED_BYTES,
    )
    return size.packed if decision.packed else size


def compare_configurations(shape: ModelShape) -> list[dict[str, Any]]:
    """One row of sizes per usual configuration, with its share of the parameters of Softmax."""
    rows: list[dict[str, Any]] = []
    for config in USUAL:
        size = config.size(shape)
        share = size.head_parameters / shape.softmax_weights
        rows.append({"configuration": config.name(shape.num_classes), "share_of_softmax": share, **size.as_dict()})
    return rows


def generate_text(
    model_name: str,
    prompt: str,
    *,
    write: Callable[[str], Any],
    tokenizer_name: str | None = None,
    max_new_tokens: int = 64,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    num_beams: int = 1,
    seed: int = 0,
    packed: bool | None = None,
) -> str:
    """The prompt and its continuation; `write` gets both in pieces (with beams: once, at the end).

    Greedy, unless a temperature, top_k or top_p asks for sampling. `packed` as in `load_model`.
    """
    from transformers import set_seed

    from codehead.training.data import check_vocabulary  # training needs an extra, sizes none
    from codehead.training.model import check_length, default_device, load_model
    from codehead.training.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_name or model_name)
    device = default_device()
    model = load_model(model_name, dtype="stored", packed=packed).eval().to(device)
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
    encoded = tokenizer(prompt, return_tensors="pt").to(device)
    length = encoded.input_ids.shape[1]
    if not length:
        raise ConfigurationError("--prompt is empty, and this tokenizer starts no text by itself; give some text")
    check_length(model, length + max_new_tokens, f"the prompt ({length} tokens) with --max-new-tokens {max_new_tokens}")
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    if temperature == 0:
        sampling = {}
    set_seed(seed)
    with torch.no_grad():
        ids = model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=bool(sampling),
            num_beams=num_beams,
            pad_token_id=tokenizer.pad_token_id,
            streamer=_streamer(tokenizer, write) if num_beams == 1 else None,
            **sampling,
        )
    text = str(tokenizer.decode(ids[0], skip_special_tokens=True))
    if num_beams > 1:
        write(text)
    return text


def _streamer(tokenizer: Any, write: Callable[[str], Any]) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            write(text)

    return Streamer(tokenizer, skip_special_tokens=True)
