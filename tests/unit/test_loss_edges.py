"""The losses at their edges: the first id beyond the classes, a single label."""

from __future__ import annotations

import pytest
import torch

from codehead import losses
from codehead.codes import build
from codehead.codes.table import CodewordTable
from codehead.errors import ConfigurationError, DataError
from codehead.head_outputs import HeadOutputs

TABLE = CodewordTable(build("minrandom", 37, bits=11, seed=1))


@pytest.mark.parametrize("loss", [losses.bitwise, losses.codeword])
def test_the_id_after_the_last_class_is_refused(loss):
    with pytest.raises(DataError, match="label 37 is not one of the 37 classes"):
        loss(torch.zeros(1, 11), torch.tensor([37]), TABLE)


@pytest.mark.parametrize("design", ["minrandom", "one_vs_all"])
@pytest.mark.parametrize("width", [1, 10, 12, 38])
def test_outputs_of_another_width_are_refused(design, width):
    """A single one would be broadcast to all bits; with one_vs_all any number would be a softmax over as many."""
    table = CodewordTable(build(design, 37, bits=11 if design == "minrandom" else None))
    outputs, labels = torch.zeros(2, width), torch.tensor([1, 2])
    for use in (losses.bitwise, losses.codeword, lambda z, *_: HeadOutputs(table).scores(z)):
        with pytest.raises(ConfigurationError, match=f"bit logits have {width} columns but the code has length"):
            use(outputs, labels, table)


@pytest.mark.parametrize("loss", [losses.bitwise, losses.codeword])
def test_a_single_label_counts_once(loss):
    bit_logits = torch.linspace(-1, 1, 11).repeat(2, 1)
    one, two = (loss(bit_logits, torch.tensor(labels), TABLE).value for labels in ([5, -100], [5, 5]))
    torch.testing.assert_close(one, two)


def test_a_node_that_one_label_looks_at_has_its_whole_loss():
    bit_logits = torch.linspace(-1, 1, 11).repeat(2, 1)
    one, two = (losses.bitwise(bit_logits, torch.tensor(labels), TABLE).per_node for labels in ([5, -100], [5, 5]))
    torch.testing.assert_close(one, two)
