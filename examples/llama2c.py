"""Convert a model of llama2.c for transformers, so that it can get another decision layer.

    python examples/llama2c.py stories260K.bin tok512.bin --out stories260K
    codehead convert stories260K --data stories.jsonl --budget 15% --out stories260K-coded

Reads the checkpoints and vocabularies of https://github.com/karpathy/llama2.c (version 0: seven integers, then
float32), such as those of https://huggingface.co/karpathy/tinyllamas.
"""

from __future__ import annotations

import argparse
import math
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = 256
"""Pieces for single bytes, which follow the special ones."""
SPACE = "▁"
HEADER = 28
"""Bytes."""


class Header(NamedTuple):
    """The first seven integers of a checkpoint."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int  # negative if the head is not the embedding
    seq_len: int


def read_model(path: Path) -> LlamaForCausalLM:
    """The model in a checkpoint; ValueError if the file is not of version 0, or incomplete."""
    data = path.read_bytes()
    if len(data) < HEADER or len(data) % 4:
        raise ValueError(f"{str(path)!r} holds {len(data)} bytes, which is not a checkpoint; copy or download it again")
    head = Header(*struct.unpack("7i", data[:HEADER]))
    values, shapes = np.frombuffer(data, dtype="<f4", offset=HEADER), _shapes(head)
    if len(values) != sum(math.prod(shape) for _, shape in shapes):
        raise ValueError(f"{str(path)!r} holds {len(values):,} numbers, which do not fit its header, {head}")
    model = LlamaForCausalLM(_config(head))
    state = model.state_dict()
    for name, shape in shapes:
        found, values = values[: math.prod(shape)], values[math.prod(shape) :]
        for key, part in _named(name, torch.from_numpy(found.copy()).view(*shape), head).items():
            state[key].copy_(part)
    return model


def _config(head: Header) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=abs(head.vocab_size),
        hidden_size=head.dim,
        intermediate_size=head.hidden_dim,
        num_hidden_layers=head.n_layers,
        num_attention_heads=head.n_heads,
        num_key_value_heads=head.n_kv_heads,
        max_position_embeddings=head.seq_len,
        rms_norm_eps=1e-5,
        tie_word_embeddings=head.vocab_size > 0,
        bos_token_id=1,
        eos_token_id=1,  # stories are told apart by <s>
    )


def _shapes(head: Header) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors after the header, in order; the two tables of rotations are not read."""
    layers, dim, hidden = head.n_layers, head.dim, head.hidden_dim
    size = dim // max(head.n_heads, 1)
    keys = size * head.n_kv_heads
    found: list[tuple[str, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", (abs(head.vocab_size), dim)),
        ("input_layernorm", (layers, dim)),
        ("self_attn.q_proj", (layers, dim, dim)),
        ("self_attn.k_proj", (layers, keys, dim)),
        ("self_attn.v_proj", (layers, keys, dim)),
        ("self_attn.o_proj", (layers, dim, dim)),
        ("post_attention_layernorm", (layers, dim)),
        ("mlp.gate_proj", (layers, hidden, dim)),
        ("mlp.down_proj", (layers, dim, hidden)),
        ("mlp.up_proj", (layers, hidden, dim)),
        ("model.norm.weight", (dim,)),
        ("rotations", (2, head.seq_len, size // 2)),
    ]
    return found if head.vocab_size > 0 else [*found, ("lm_head.weight", (-head.vocab_size, dim))]


def _named(name: str, values: Tensor, head: Header) -> dict[str, Tensor]:
    """The tensors under their names in transformers."""
    if name == "rotations":
        return {}
    if name.startswith(("model.", "lm_head.")):
        return {name: values}
    heads = {"self_attn.q_proj": head.n_heads, "self_attn.k_proj": head.n_kv_heads}.get(name)
    parts = values if heads is None else torch.stack([_halves(part, heads) for part in values])
    return {f"model.layers.{layer}.{name}.weight": part for layer, part in enumerate(parts)}


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a projection `(heads · size, dim)`: llama2.c rotates neighbours, transformers two halves."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a vocabulary: pairs merged by score, bytes for text without a piece."""
    pieces = [text.decode("utf-8").replace(" ", SPACE) for text in _pieces(path.read_bytes())]
    pieces[: len(SPECIAL)] = SPECIAL
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [  # pieces are in the order of their scores
        (piece[:cut], piece[cut:])
        for piece in pieces[len(SPECIAL) + BYTES :]
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    own = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    own.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    own.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", bos_token="<s>", eos_token="<s>")


def _pieces(data: bytes) -> list[bytes]:
    """The text of every token; each is stored with its score, four bytes, and its length."""
    found, start = [], 4
    while start < len(data):
        _, length = struct.unpack_from("fi", data, start)
        found.append(data[start + 8 : start + 8 + length])
        start += 8 + length
    return found


def main() -> None:
    """Read the command line, convert, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    read_model(given.checkpoint).save_pretrained(given.out)
    read_tokenizer(given.vocabulary).save_pretrained(given.out)


if __name__ == "__main__":
    main()
