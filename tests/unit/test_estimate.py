"""The cost of a run follows from its shape."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig

from codehead.lab.protocols.runner import ACTIVATIONS, run_cost
from codehead.training.config import RunConfig

V, H, INNER, LAYERS = 1000, 32, 64, 2
BODY = LAYERS * (4 * H * H + 3 * H * INNER + 2 * H) + H  # weights of attention, MLP and norms


def llama(tied: bool = False) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=V, hidden_size=H, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip


def run(decision: dict[str, Any] | None = None, adapt: str = "lora", **training: Any) -> RunConfig:
    values = {"per_device_train_batch_size": 4, "max_steps": 10, **training}
    return RunConfig.from_dict(
        {
            "model": "a-model",
            "data": {"train": "text.txt", "block_size": 8},
            "output_dir": "out",
            "decision": decision,
            "adapt": adapt,
            "training": values,
        }
    )


@pytest.mark.parametrize("tied", [False, True])
def test_softmax_counts_body_and_head(tied: bool) -> None:
    cost = run_cost(run(), llama(tied))
    assert cost.steps == 10
    assert cost.operations_per_step == (4 * BODY + 6 * V * H) * 4 * 8
    kept = ACTIVATIONS * LAYERS * H + 2 * V
    assert cost.memory == 4 * (BODY + 2 * V * H) + 12 * V * H + 4 * 4 * 8 * kept


def test_a_bitwise_head_costs_nothing_per_token_of_the_vocabulary() -> None:
    cost = run_cost(run({"code": "minrandom", "bits": 50}), llama())
    assert cost.operations_per_step == (4 * BODY + 6 * 50 * H) * 4 * 8
    wide = run_cost(run({"code": "minrandom", "bits": 50, "loss": "codeword"}), llama())
    assert wide.operations_per_step - cost.operations_per_step == 6 * 50 * V * 4 * 8
    assert wide.memory > cost.memory


def test_a_code_without_a_length_has_the_bits_that_tell_all_tokens_apart() -> None:
    narrow, wide = (run_cost(run({"code": "minimal", "loss": loss}), llama()) for loss in ("bitwise", "codeword"))
    assert wide.operations_per_step - narrow.operations_per_step == 6 * 10 * V * 4 * 8
    checked = run_cost(run({"code": "minimal", "code_params": {"parity": 3}}), llama())
    assert checked.operations_per_step - narrow.operations_per_step == 6 * 3 * H * 4 * 8


def test_an_mtl_head_counts_its_private_layers() -> None:
    cost = run_cost(run({"code": "minimal", "head": "mtl", "width": 7}), llama())
    assert cost.operations_per_step == (4 * BODY + 6 * 10 * (H * 7 + 7)) * 4 * 8


def test_training_everything_costs_a_half_more_in_the_body() -> None:
    full, lora = run_cost(run(adapt="full"), llama()), run_cost(run(), llama())
    assert full.operations_per_step - lora.operations_per_step == 2 * BODY * 4 * 8
    assert full.memory > lora.memory


def test_without_a_number_of_steps_the_time_is_unknown() -> None:
    cost = run_cost(run(max_steps=-1), llama())
    assert cost.steps is None
    assert cost.seconds(1e9) is None
    assert run_cost(run(), llama()).seconds(2e9) == pytest.approx(run_cost(run(), llama()).seconds(1e9) / 2)


def test_accumulated_batches_cost_time_but_no_memory() -> None:
    once, twice = run_cost(run(), llama()), run_cost(run(gradient_accumulation_steps=2), llama())
    assert twice.operations_per_step == 2 * once.operations_per_step
    assert twice.memory == once.memory
