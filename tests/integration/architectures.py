"""Tiny, untrained models of many architectures, made from configurations alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB = 120
HIDDEN = 16
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODERN = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    **SPECIAL,
}
GEMMA = {**MODERN, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 0.5}
OPT = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "ffn_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    **SPECIAL,
}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": HIDDEN,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    **SPECIAL,
}

CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "opt": lambda **kw: OPTConfig(**OPT, word_embed_proj_dim=HIDDEN, **kw),
    "opt_350m": lambda **kw: OPTConfig(**OPT, word_embed_proj_dim=8, do_layer_norm_before=False, **kw),
    "qwen2": lambda **kw: Qwen2Config(**MODERN, **kw),
    "llama": lambda **kw: LlamaConfig(**MODERN, **kw),
    "gpt2": lambda **kw: GPT2Config(**GPT2, **kw),
    "gemma2": lambda **kw: Gemma2Config(**GEMMA, **kw),
    "gemma3": lambda **kw: Gemma3TextConfig(**GEMMA, **kw),
    "gpt_neox": lambda **kw: GPTNeoXConfig(**{k: v for k, v in MODERN.items() if k != "num_key_value_heads"}, **kw),
    "granite": lambda **kw: GraniteConfig(**MODERN, logits_scaling=4.0, **kw),
    "mixtral": lambda **kw: MixtralConfig(**MODERN, num_local_experts=2, num_experts_per_tok=1, **kw),
}


def make(name: str, tied: bool = True, seed: int = 0) -> PreTrainedModel:
    """A model in evaluation mode; the same seed gives the same weights, large enough to tell tokens apart."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](tie_word_embeddings=tied))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


def tokens(batch: int = 2, length: int = 7, seed: int = 1) -> torch.Tensor:
    """Token ids `(batch, length)` without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)
