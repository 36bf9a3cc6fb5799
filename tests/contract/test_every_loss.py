"""What every registered loss promises."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from codehead.codes import build
from codehead.codes.table import CodewordTable
from codehead.errors import ConfigurationError, DataError
from codehead.losses import LOSSES

TABLES = {
    "binary": lambda: CodewordTable(build("minrandom", 37, bits=11, seed=1)),
    "ternary": lambda: CodewordTable(build("sparse_random", 23, bits=19, seed=2)),
    "one_vs_all": lambda: CodewordTable(build("one_vs_all", 13)),
}


@pytest.fixture(params=LOSSES.names())
def loss(request):
    return LOSSES.get(request.param)


@pytest.fixture(params=list(TABLES))
def table(request):
    return TABLES[request.param]()


def example(table, tokens=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(tokens, table.length, generator=generator)
    return z, torch.randint(table.num_classes, (tokens,), generator=generator)


def test_ignored_labels_do_not_count(loss, table):
    z, labels = example(table)
    labels[::3] = -100
    kept = labels != -100
    torch.testing.assert_close(loss(z, labels, table).value, loss(z[kept], labels[kept], table).value)


def test_gradient_of_an_ignored_position_is_zero(loss, table):
    z, labels = example(table)
    labels[2] = -100
    z.requires_grad_()
    loss(z, labels, table).value.backward()
    assert z.grad[2].abs().sum() == 0 and z.grad[3].abs().sum() > 0


def test_num_items_makes_accumulated_micro_batches_equal_one_batch(loss, table):
    z, labels = example(table)
    labels[:3] = -100
    whole = loss(z, labels, table).value
    parts = [loss(z[i : i + 4], labels[i : i + 4], table, num_items=torch.tensor(9)).value for i in (0, 4, 8)]
    torch.testing.assert_close(sum(parts), whole)


def test_leading_shape_does_not_matter(loss, table):
    z, labels = example(table)
    shaped = loss(z.view(3, 4, -1), labels.view(3, 4), table).value
    torch.testing.assert_close(shaped, loss(z, labels, table).value)


def test_gradient_descent_on_bit_logits_finds_the_labels(loss, table):
    z, labels = example(table)
    z.requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        loss(z, labels, table).value.backward()
        optimizer.step()
    assert loss(z, labels, table).value < 0.1


def test_low_precision_bit_logits_give_a_float32_loss(loss, table):
    z, labels = example(table)
    value = loss(z.bfloat16(), labels, table).value
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(z.bfloat16().float(), labels, table).value)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_ignored_cannot_poison_the_loss(loss, table, value):
    z, labels = example(table)
    expected = loss(z[1:], labels[1:], table).value
    labels[0] = -100
    z[0] = float(value)
    z.requires_grad_()
    actual = loss(z, labels, table).value
    actual.backward()
    torch.testing.assert_close(actual, expected)
    assert torch.isfinite(z.grad[1:]).all()


def test_a_negative_label_does_not_pass_for_class_zero_where_labels_are_not_checked(loss, table, monkeypatch):
    monkeypatch.setattr("codehead.losses._check_labels", lambda *_: None)  # as on a GPU or in a compiled graph
    z, labels = example(table)
    labels[5] = -1
    with pytest.raises((IndexError, RuntimeError)):
        loss(z, labels, table)


def test_nan_bit_logits_give_a_nan_loss(loss, table):
    z, labels = example(table)
    z[4] = float("nan")
    assert torch.isnan(loss(z, labels, table).value)


def by_definition(name, bit_logits, labels, table):
    """In float64: the mean of −log σ(c·z) over a codeword, or of −log of the posterior."""
    codewords, z = table.signs().double(), bit_logits.double()
    log_bits = F.logsigmoid(z.unsqueeze(1) * codewords) * codewords.abs()
    if name == "bitwise":
        nats = -log_bits.sum(-1) / codewords.abs().sum(-1).clamp(min=1)
    elif table.is_implicit:  # the outputs are the logits of tokens
        nats = z.logsumexp(-1, keepdim=True) - z
    else:
        nats = log_bits.sum(-1).logsumexp(-1, keepdim=True) - log_bits.sum(-1)
    return nats.gather(1, labels.unsqueeze(1)).mean()


@pytest.mark.parametrize("size", [1e-30, 1.0, 30.0, 1e4, 1e9, 1e20, 1e36])
@pytest.mark.parametrize("name", LOSSES.names())
def test_bit_logits_of_every_size_equal_the_definition(name, table, size):
    z, labels = example(table)
    z[:, ::3] *= size
    z.requires_grad_()
    value = LOSSES.get(name)(z, labels, table).value
    torch.testing.assert_close(value.double(), by_definition(name, z, labels, table), rtol=1e-4, atol=1e-4)
    value.backward()
    assert torch.isfinite(z.grad).all()


def test_what_is_no_number_or_no_label_is_refused(loss, table):
    z, labels = example(table)
    for dtype in (torch.complex64, torch.bool, torch.int64):
        with pytest.raises(ConfigurationError, match=f"bit logits must be floating-point numbers, got {dtype}"):
            loss(z.to(dtype), labels, table)
    for dtype in (torch.complex64, torch.bool, torch.float32):
        with pytest.raises(DataError, match=f"labels must be whole numbers, got {dtype}"):
            loss(z, labels.to(dtype), table)
    for dtype in (torch.int32, torch.uint8):
        torch.testing.assert_close(loss(z, labels.to(dtype), table).value, loss(z, labels, table).value)


@pytest.mark.parametrize("label", [-1, 10_000])
def test_a_label_that_is_no_class_is_named(loss, table, label):
    z, labels = example(table)
    labels[5] = label
    with pytest.raises(DataError, match=f"label {label} is not one of the {table.num_classes} classes"):
        loss(z, labels, table)


def test_labels_of_another_shape_are_refused(loss, table):
    z, labels = example(table)
    with pytest.raises(ConfigurationError, match="labels of shape"):
        loss(z, labels[:-1], table)
