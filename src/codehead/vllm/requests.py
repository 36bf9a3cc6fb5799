"""How many of the best tokens the current requests need: a few, so that others need no logits, or all."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from codehead.errors import ConfigurationError
from codehead.models.selection import MOST

GREEDY = 1e-5
"""The temperature below which vLLM samples the best token."""
HARMLESS = {
    "n", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "max_tokens",
    "flat_logprobs", "detokenize", "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output",
    "output_kind", "stream_interval", "skip_clone", "output_text_buffer_length", "skip_reading_prefix_cache",
}  # fmt: skip
"""Parameters that use no logits, or only those of the best tokens; all others must be at their defaults."""


def needed(params: Any) -> int | None:
    """How many of the best tokens a request needs, one more than it can choose from; None for all.

    Temperature, min_p and top_p make no difference: vLLM applies them to the tokens that top_k leaves, or relative to
    the best token.
    """
    default = SamplingParams()
    for name in params.__struct_fields__:
        value = getattr(params, name)
        changed = value is not False and value != getattr(default, name)  # vLLM sets watermarking from None to False
        if changed and name not in HARMLESS and not name.startswith("_"):
            return None
    if params.temperature < GREEDY:
        return 1
    return params.top_k + 1 if 0 < params.top_k <= MOST else None


class FewTokens(LogitsProcessor):
    """Changes no logits, but tells the head how many tokens the requests of a step need.

    `vllm serve --logits-processors codehead.vllm.requests:FewTokens` switches it on. Written for vLLM's model runner 1.
    """

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: Any) -> None:
        config = vllm_config.quant_config
        if not hasattr(config, "few"):
            raise ConfigurationError(
                "logits_processors names codehead's FewTokens, but the model is neither coded nor screened; omit it"
            )
        config.few = self
        self._requests: dict[int, int] = {}
        self._size = 0

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: Tensor) -> Tensor:
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._requests, batch_update, lambda params, *_: needed(params))
        if batch_update is not None:
            self._size = batch_update.batch_size

    def of(self, rows: int) -> int | None:
        """How many of the best tokens are enough for this many rows of logits; None if all are needed.

        All are needed where rows are not the requests' own, as for log-probabilities of a prompt.
        """
        known = len(self._requests) == self._size == rows
        return max(self._requests.values()) if known and rows else None
