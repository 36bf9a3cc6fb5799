"""Llama models in GGUF files: a tiny one of eight-bit blocks, and any, with the numbers that the blocks stand for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from transformers import LlamaConfig, LlamaForCausalLM

from codehead.training.tokenizer import train_bpe

BLOCKS = GGMLQuantizationType.Q8_0
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, texts: list[str], tied: bool = False) -> LlamaForCausalLM:
    """Write the file; the model that it holds."""
    tokenizer = train_bpe(texts, 290)
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    write_model(path, model, tokenizer)
    return model


@torch.no_grad()
def write_model(path: Path, model: LlamaForCausalLM, tokenizer: Any, pre: str = "gpt-2", exact: bool = False) -> None:
    """Write a model and its byte-level BPE, matrices in float32 if `exact`, or else in blocks, and so in the model."""
    writer = GGUFWriter(path, "llama")
    _add_sizes(writer, model.config)
    _add_tokenizer(writer, tokenizer, pre)
    for name, values in model.named_parameters():
        _add_tensor(writer, name, values, model.config, exact)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: GGUFWriter, config: LlamaConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Any, pre: str) -> None:
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if id in special else TokenType.NORMAL for id in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


def _add_tensor(writer: GGUFWriter, name: str, values: torch.Tensor, config: LlamaConfig, exact: bool) -> None:
    """Write one tensor, and leave what is read from it in the model."""
    array = values.numpy()
    if "q_proj" in name or "k_proj" in name:
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        array = _rotated(array, heads)
    if array.ndim == 1 or exact:
        writer.add_tensor(_name(name), array.copy())
        return
    writer.add_tensor(_name(name), quantize(array, BLOCKS), raw_dtype=BLOCKS)
    values.copy_(torch.from_numpy(dequantize(quantize(values.numpy(), BLOCKS), BLOCKS)))


def _rotated(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key matrix in the order of GGUF: the halves that are rotated together, interleaved."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _name(name: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    name = name.removesuffix(".weight")
    if name in whole:
        return f"{whole[name]}.weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"
