"""Small random models, what transformers makes of them, and vLLM engines in this process."""

import gc
import os
from contextlib import contextmanager

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}  # vLLM reads them as it is imported

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config
from transformers.models.gemma3 import Gemma3TextConfig

VOCABULARY, SIZE, NEW = 500, 64, 12
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": SIZE, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: LlamaConfig(**COMMON, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**COMMON, tie_word_embeddings=True),
    "gemma3": lambda: Gemma3TextConfig(
        **COMMON, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=SIZE, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=None,
        initializer_range=0.3,
    ),
}  # fmt: skip


def stock(family, vocabulary=VOCABULARY):
    torch.manual_seed(0)
    config = CONFIGS[family]()
    config.vocab_size = vocabulary
    return AutoModelForCausalLM.from_config(config).eval()


def prompts(count, length=8):
    ids = torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))
    return ids.tolist()


@torch.no_grad()
def by_transformers(folder, some, new=NEW):
    """Greedy text `(prompts, new)` and the log-probabilities of all tokens `(prompts, new, V)`."""
    model, ids = AutoModelForCausalLM.from_pretrained(folder).eval(), torch.tensor(some)
    written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new)
    return written[:, ids.shape[1] :].tolist(), model(written).logits[:, ids.shape[1] - 1 : -1]


@contextmanager
def engine(folder, **options):
    """An engine of vLLM in this process; only one at a time."""
    from vllm import LLM  # after what it reads of the environment was set

    common = {
        "dtype": "float32", "enforce_eager": True, "skip_tokenizer_init": True, "max_model_len": 64, "max_num_seqs": 16,
        "distributed_executor_backend": "uni",
    }  # fmt: skip
    made = LLM(str(folder), **(common | options))
    try:
        yield made
    finally:
        del made
        gc.collect()


def by_vllm(made, some, new=NEW, **options):
    """The outputs of greedy requests, or of others by `options`."""
    from vllm import SamplingParams

    params = SamplingParams(**{"temperature": 0, "max_tokens": new, "detokenize": False, **options})
    answers = made.generate([{"prompt_token_ids": ids} for ids in some], params, use_tqdm=False)
    return [answer.outputs[0] for answer in answers]
