"""Compressed Softmax heads: what their stored form can say, what it weighs."""

from __future__ import annotations

import pytest
import torch

from codehead.errors import ConfigurationError
from codehead.lab.baselines import quantised, trimmed
from codehead.models.rounding import error_corrected, error_spread

V, H = 50, 24


def head(seed=0):
    return torch.randn(V, H, generator=torch.Generator().manual_seed(seed))


def states(seed=1):
    """Hidden states of very different spread along correlated directions."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(H, H, generator=generator) * torch.logspace(0, -2, H)[:, None]
    return torch.randn(2000, H, generator=generator) @ mix


@pytest.mark.parametrize(("bits", "group"), [(2, 8), (4, 8), (4, 24), (8, 24)])
@pytest.mark.parametrize("corrected", [False, True])
def test_a_group_has_no_more_values_than_its_integers(bits, group, corrected):
    moments = states().T @ states() if corrected else None
    weight = quantised(head(), bits, group, moments).weight
    for values in weight.reshape(-1, group):
        assert len(values.unique()) <= 2**bits
    assert weight.unique().numel() > 2**bits  # groups have scales of their own


@pytest.mark.parametrize("group", [8, 24])
def test_rounding_to_the_nearest_errs_by_half_a_step(group):
    weight, found = head(), quantised(head(), 4, group).weight
    grouped = weight.unflatten(1, (-1, group))
    step = (grouped.amax(-1) - grouped.amin(-1)) / 15
    error = (found - weight).unflatten(1, (-1, group)).abs().amax(-1)
    assert (error <= 0.5 * step * 1.05 + 0.02).all() and (error > 0.2 * step).any()  # the grid itself is in bf16


def test_error_correction_keeps_scores_better_than_rounding():
    weight, hidden = head(), states()
    moments = hidden.T @ hidden / len(hidden)

    def change(found):
        return (hidden @ (found.weight - weight).T).norm()

    for bits in (3, 4):
        assert change(quantised(weight, bits, 8, moments)) < 0.8 * change(quantised(weight, bits, 8))


@pytest.mark.parametrize(("hidden", "group"), [(24, 8), (200, 200), (300, 100), (256, 64), (130, 130)])
def test_errors_reach_all_later_columns_whatever_the_blocks(hidden, group):
    """Against the definition: one column after the other, each error spread at once."""
    generator = torch.Generator().manual_seed(hidden)
    weight = torch.randn(7, hidden, generator=generator)
    mixed = torch.randn(3 * hidden, hidden, generator=generator) @ torch.randn(hidden, hidden, generator=generator)
    moments = (mixed.T @ mixed).double()

    def rounding(columns):
        step = columns.abs().amax(-1, keepdim=True) / 3
        return lambda column: (column / step).round() * step

    damped = moments + 0.01 * moments.diagonal().mean() * torch.eye(hidden).double()
    spread = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    left = weight.double().clone()
    for column in range(hidden):
        if column % group == 0:
            nearest = rounding(left[:, column : column + group].float())
        rounded = nearest(left[:, column].float()[:, None])[:, 0].double()
        left[:, column + 1 :] -= torch.outer(
            (left[:, column] - rounded) / spread[column, column], spread[column, column + 1 :]
        )
        left[:, column] = rounded
    torch.testing.assert_close(error_corrected(weight, error_spread(moments), group, rounding), left.float())


def test_with_independent_hidden_states_there_is_nothing_to_correct():
    torch.testing.assert_close(quantised(head(), 4, 24, torch.eye(H)).weight, quantised(head(), 4, 24).weight)


def test_bytes_are_integers_and_a_scale_and_an_offset_per_group():
    assert quantised(head(), 4, 8).num_bytes == V * H // 2 + 4 * V * 3
    assert quantised(head(), 8, 24).num_bytes == V * H + 4 * V


def test_a_constant_group_stays_as_it_is():
    weight = head()
    weight[3] = 0.5
    assert (quantised(weight, 4, 8).weight[3] == 0.5).all()


def test_trimming_keeps_some_rows_and_rules_the_others_out():
    peer = trimmed(head(), torch.tensor([4, 1]))
    assert peer.num_bytes == 2 * 2 * H
    torch.testing.assert_close(peer.weight[[4, 1]], head()[[4, 1]].bfloat16().float(), rtol=0, atol=0)
    assert peer.weight.isnan().all(-1).sum() == V - 2


GRIDS = [(1, 8, "bits is 1"), (9, 8, "bits is 9"), (4, 7, "group is 7"), (4, 0, "group is 0")]


@pytest.mark.parametrize(("bits", "group", "message"), GRIDS)
def test_impossible_grids_are_refused(bits, group, message):
    with pytest.raises(ConfigurationError, match=message):
        quantised(head(), bits, group)
