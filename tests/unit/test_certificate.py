"""The order statistic against binomial sums, and the bound on rounding."""

from __future__ import annotations

import math

import pytest
import torch

from codehead.errors import ConfigurationError
from codehead.screening.calibration import order_statistic
from codehead.screening.head import close, rounding


def binomial_tail(count: int, share: float, least: int) -> float:
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(least, count + 1))


@pytest.mark.parametrize(("count", "share", "confidence"), [(100, 0.9, 0.95), (60, 0.95, 0.9), (400, 0.99, 0.95)])
def test_the_order_statistic_is_the_least_that_covers(count, share, confidence):
    found = order_statistic(count, share, confidence)
    assert binomial_tail(count, share, found) <= 1 - confidence
    assert binomial_tail(count, share, found - 1) > 1 - confidence


def test_too_few_positions_are_refused_with_how_many_would_do():
    with pytest.raises(ConfigurationError, match="give at least 2,995 of them"):
        order_statistic(2994, 0.999, 0.95)
    assert order_statistic(2995, 0.999, 0.95) == 2995


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_bounds_what_kernels_differ_by(dtype):
    rows, hidden = torch.randn(3000, 512).to(dtype), torch.randn(512).to(dtype)
    truth = rows.double() @ hidden.double()
    for computed in (rows @ hidden, torch.stack([row @ hidden for row in rows[:50]])):
        error = (computed.double() - truth[: len(computed)]).abs()
        assert (error <= rounding(hidden, rows)[: len(computed)]).all()


def test_two_equal_rows_are_close_and_far_ones_are_not():
    hidden = torch.randn(64)
    rows = torch.stack([hidden, hidden, -hidden])
    assert close(hidden, rows, rows @ hidden)
    assert not close(hidden, rows[1:], rows[1:] @ hidden)
