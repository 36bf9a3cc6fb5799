"""The transform code of a head's rows: what its head and codewords add up to, and the errors it is known to make."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codehead.models.hidden import Statistics
from codehead.screening.transform_coding import fit

V, H = 700, 24


@pytest.fixture(scope="module")
def rows_and_hidden():
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, H + 1) ** -1.0
    rows = torch.randn(V, H, generator=generator) @ torch.randn(H, H, generator=generator) * spread
    hidden = torch.randn(900, H, generator=generator) * spread.flip(0) + 0.3
    return rows, hidden


def scores(code, rows, hidden):
    """Scores by the codewords as a linear head reads them, with what all rows have in common, and the bias per row."""
    bits = np.unpackbits(code.encode(rows).plane, axis=1, count=code.length, bitorder="little")
    coordinates, sizes = code.columns
    white = (hidden.double() - code.mean) @ code.inverse.T
    half = torch.from_numpy(bits).double() - 0.5
    return (white[:, coordinates] * sizes) @ half.T + (white @ code.centre)[:, None] + rows.double() @ code.mean


@pytest.mark.parametrize("bits", [20, 60, 144])
def test_codewords_score_rows_up_to_their_residuals(bits, rows_and_hidden):
    rows, hidden = rows_and_hidden
    code = fit(rows, Statistics.of(torch.zeros(V), hidden[:600]), bits)
    assert code.length == bits
    residual = code.encode(rows).residual.double()
    white = (hidden[600:].double() - code.mean) @ code.inverse.T
    exact = hidden[600:].double() @ rows.double().T
    torch.testing.assert_close(scores(code, rows, hidden[600:]) + white @ residual.T, exact, rtol=1e-4, atol=1e-4)


def test_more_bits_err_less_and_unequal_directions_get_unequal_bits(rows_and_hidden):
    rows, hidden = rows_and_hidden
    statistics = Statistics.of(torch.zeros(V), hidden[:600])
    exact = hidden[600:].double() @ rows.double().T
    codes = [fit(rows, statistics, bits) for bits in (24, 72, 144)]
    errors = [float((scores(code, rows, hidden[600:]) - exact).square().mean()) for code in codes]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert codes[0].digits.tolist() == sorted(codes[0].digits.tolist(), reverse=True)
    assert codes[0].digits[0] > 1


def test_no_direction_of_hidden_states_counts_for_more_than_it_varies(rows_and_hidden):
    rows, hidden = rows_and_hidden
    code = fit(rows, Statistics.of(torch.zeros(V), hidden), 48)
    white = (hidden.double() - code.mean) @ code.inverse.T
    variances = torch.linalg.eigvalsh(white.T @ white / len(white))
    assert 0.9 < variances[-1] < 1  # where they vary most; less by what is added for text that was not seen
    assert variances[0] > 0
    torch.testing.assert_close(code.directions @ code.inverse, torch.eye(H, dtype=torch.float64))
