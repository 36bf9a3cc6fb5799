"""Outputs of every size and kind, whatever they mean: corrected bits, a chain, tokens."""

from __future__ import annotations

import pytest
import torch

from codehead import heads
from codehead.codes import build
from codehead.decoding.extras import Corrections
from codehead.errors import ConfigurationError
from codehead.layer import Decision, DecisionLayer

V = 40


def corrected() -> Decision:
    rows = torch.tensor([4, 17, 0], dtype=torch.int32)
    return Decision(build("minrandom", V, bits=12, seed=1), "codeword", corrections=Corrections(V, rows, True))


def chained() -> Decision:
    code = build("minimal", V)
    torch.manual_seed(1)
    return DecisionLayer(code, heads.build("chain", 8, code.length, width=6)).decision


READINGS = {
    "bits": lambda: Decision(build("minrandom", V, bits=12, seed=1)),
    "corrected bits": corrected,
    "chain": chained,
    "tokens": lambda: Decision(build("one_vs_all", V), "codeword", log_probabilities=True),
}


@pytest.fixture(params=list(READINGS))
def decision(request: pytest.FixtureRequest) -> Decision:
    return READINGS[request.param]()


@pytest.mark.parametrize("size", [1e5, 1e20, 1e37, 3e38])
def test_float32_of_every_size_means_what_it_means_in_float64(decision: Decision, size: float) -> None:
    outputs = torch.rand(30, decision.num_outputs) * 2 - 1
    outputs[:, ::2] *= size
    truth = decision.decode(outputs.double(), k=3)
    found = decision.decode(outputs, k=3)
    assert torch.equal(found.ids, truth.ids)
    assert found.scores.dtype == torch.float32 and torch.isfinite(found.scores[:, 0]).all()
    probabilities = decision.logits(outputs.double()).softmax(-1).float()
    torch.testing.assert_close(decision.logits(outputs).softmax(-1), probabilities, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_or_no_real_number_is_refused(decision: Decision) -> None:
    outputs = torch.zeros(2, decision.num_outputs)
    for value in ("nan", "inf", "-inf"):
        with pytest.raises(ConfigurationError, match="NaN or infinity"):
            decision.decode(outputs.masked_fill(outputs == 0, float(value)))
    for dtype in (torch.complex64, torch.bool, torch.int64):
        with pytest.raises(ConfigurationError, match="must be floating-point numbers"):
            decision.decode(outputs.to(dtype))
    for ties in (-1, 2**70, True):
        with pytest.raises(ConfigurationError, match="ties must be"):
            decision.decode(outputs, ties=ties)
