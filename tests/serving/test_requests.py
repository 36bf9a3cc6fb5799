"""Which requests need the logits of all tokens."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` makes an environment with it")
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

from codehead.errors import ConfigurationError
from codehead.vllm.requests import FewTokens, needed


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"temperature": 0}, 1),
        ({"temperature": 0, "max_tokens": 3, "stop_token_ids": [4]}, 1),
        ({"temperature": 0, "watermarking": False}, 1),
        ({"temperature": 0, "watermarking": True}, None),
        ({"top_k": 40}, 41),
        ({"top_k": 40, "top_p": 0.9, "min_p": 0.1, "seed": 1}, 41),
        ({}, None),
        ({"top_p": 0.9}, None),
        ({"top_k": 4000}, None),
        ({"temperature": 0, "logprobs": 0}, None),
        ({"temperature": 0, "prompt_logprobs": 1}, None),
        ({"temperature": 0, "repetition_penalty": 1.1}, None),
        ({"temperature": 0, "logit_bias": {3: 1.0}}, None),
        ({"temperature": 0, "allowed_token_ids": [3]}, None),
        ({"temperature": 0, "min_tokens": 1}, None),
    ],
)
def test_what_a_request_needs(params, expected):
    assert needed(SamplingParams(**params)) == expected


class _Config:
    class quant_config:  # noqa: N801
        few = None


def _update(size, added=(), removed=()):
    rows = [(index, SamplingParams(**params), None, []) for index, params in added]
    return BatchUpdate(batch_size=size, removed=list(removed), added=rows, moved=[])


def test_a_batch_needs_all_as_long_as_one_request_does():
    few = FewTokens(_Config, torch.device("cpu"), False)
    assert _Config.quant_config.few is few
    assert few.of(1) is None
    few.update_state(_update(2, added=[(0, {"temperature": 0}), (1, {"top_k": 4})]))
    assert few.of(2) == 5
    assert few.of(1) is few.of(3) is None  # rows that are not the requests' own
    few.update_state(_update(3, added=[(2, {})]))
    assert few.of(3) is few.of(2) is None
    few.update_state(_update(2, removed=[2]))
    assert few.of(2) == 5
    few.update_state(None)
    assert few.of(2) == 5


def test_a_stock_model_is_refused():
    with pytest.raises(ConfigurationError, match="neither coded nor screened"):
        FewTokens(type("Config", (), {"quant_config": None}), None, False)
