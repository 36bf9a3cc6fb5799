"""Values of the losses against their definitions, and the tensors they are allowed to make."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from codehead import losses
from codehead.codes import build
from codehead.codes.table import CodewordTable

BINARY = CodewordTable(build("minrandom", 1000, bits=14, seed=1))


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation's result had, views included."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_bitwise_is_the_mean_binary_cross_entropy_per_node():
    z, labels = torch.randn(8, 14), torch.randint(1000, (8,))
    bits = (BINARY.lookup(labels) > 0).float()
    expected = F.binary_cross_entropy(torch.sigmoid(z), bits)
    result = losses.bitwise(z, labels, BINARY)
    torch.testing.assert_close(result.value, expected)
    torch.testing.assert_close(
        result.per_node, F.binary_cross_entropy(torch.sigmoid(z), bits, reduction="none").mean(0)
    )


def test_undecided_bits_cost_log_two_in_any_code():
    for design, bits in [("minimal", None), ("sparse_random", 40), ("one_vs_one", None)]:
        table = CodewordTable(build(design, 16, bits=bits))
        result = losses.bitwise(torch.zeros(6, table.length), torch.arange(6), table)
        assert result.value.item() == pytest.approx(math.log(2))


def test_bitwise_never_makes_a_tensor_with_v_entries():
    z, labels = torch.randn(8, 14, requires_grad=True), torch.randint(1000, (8,))
    with LargestTensor() as largest:
        losses.bitwise(z, labels, BINARY).value.backward()
    assert largest.elements == 8 * 16  # the 14 bits of a label are unpacked from two bytes


def test_the_guard_against_v_entries_can_fail():
    z, labels = torch.randn(8, 14, requires_grad=True), torch.randint(1000, (8,))
    with LargestTensor() as largest:
        losses.codeword(z, labels, BINARY).value.backward()
    assert largest.elements >= 8 * 1000


def test_bitwise_without_a_single_label_is_zero():
    assert losses.bitwise(torch.randn(3, 14), torch.full((3,), -100), BINARY).value == 0


def test_codeword_is_cross_entropy_of_the_posterior():
    z, labels = torch.randn(8, 14, dtype=torch.float64), torch.randint(1000, (8,))
    expected = F.cross_entropy(0.5 * z @ BINARY.signs().double().T, labels)
    torch.testing.assert_close(losses.codeword(z, labels, BINARY).value, expected)


def test_codeword_in_chunks_equals_one_piece_and_keeps_no_scores(monkeypatch):
    z, labels = torch.randn(50, 14), torch.randint(1000, (50,))
    labels[7] = -100
    whole = z.clone().requires_grad_()
    losses.codeword(whole, labels, BINARY).value.backward()

    saved = []
    monkeypatch.setattr(losses, "CHUNK_SCORES", 8 * 1000)
    chunked = z.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        loss = losses.codeword(chunked, labels, BINARY).value
    largest_kept = max(saved)
    loss.backward()
    torch.testing.assert_close(chunked.grad, whole.grad)
    assert largest_kept < 1000


@pytest.mark.parametrize("num_items", [None, 5, torch.tensor(5)])
def test_one_vs_all_codeword_loss_is_the_stock_loss_bit_for_bit(num_items):
    from transformers.loss.loss_utils import fixed_cross_entropy

    table = CodewordTable(build("one_vs_all", 30))
    labels = torch.tensor([3, -100, 29, 0, 7, 7, 1])
    for dtype in (torch.float32, torch.bfloat16):
        ours, stock = (torch.randn(7, 30, generator=torch.Generator().manual_seed(1)).to(dtype) for _ in range(2))
        ours.requires_grad_(), stock.requires_grad_()
        a = losses.codeword(ours, labels, table, num_items).value
        b = fixed_cross_entropy(stock.float(), labels, num_items, -100)
        a.backward(), b.backward()
        assert torch.equal(a, b) and torch.equal(ours.grad, stock.grad)
