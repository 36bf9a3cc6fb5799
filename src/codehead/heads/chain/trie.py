"""The codewords of a binary code as a tree of prefixes, bit by bit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """One bit: from N prefixes that end before it to M that end with it. Prefixes are numbered in their order."""

    parent: Tensor
    """`(M,)`: the prefix without this bit."""
    children: Tensor
    """`(N, 2)`: the prefix that goes on with −1 and with +1; −1 where no codeword does."""
    branching: Tensor
    """`(B,)`: the prefixes that go on both ways. For all others the bit is forced."""
    row: Tensor
    """`(B,)`: which of the block's `prefixes` each of these begins with."""


class Block(NamedTuple):
    """Bits that are predicted from the same earlier bits."""

    prefixes: Tensor
    """`(L, start)`, symbols ±1: the earlier bits after which some bit of the block is free, each set once."""
    row: Tensor
    """`(N,)`: the row of every prefix that ends before the block; 0 for those that are not among them."""
    levels: list[Level]


class Trie(NamedTuple):
    """The distinct prefixes of V codewords.

    A tree with V leaves branches V − 1 times, however long the codewords are. A bit after whose prefix only one value
    continues to a codeword is *forced*: it tells nothing, and has probability 1.
    """

    blocks: list[Block]
    free: Tensor
    """`(V, n)`, bool: whether the bit of a codeword is free, rather than forced by those before it."""
    leaf: Tensor
    """`(V,)`: the last prefix of every class, which is its codeword."""
    classes: Tensor
    """`(leaves,)`: a class with this codeword."""


@torch.no_grad()
def build_trie(signs: Tensor, starts: list[int]) -> Trie:
    """The tree of the codewords `signs` `(V, n)` of ±1, whose blocks begin at the bits `starts`."""
    bits = (signs > 0).long()
    node = torch.zeros(len(bits), dtype=torch.int64, device=bits.device)
    blocks, free = [], []
    for start, stop in zip(starts, [*starts[1:], bits.shape[1]], strict=True):
        block, node, of_block = _block(signs[:, :start], bits[:, start:stop], node)
        blocks.append(block)
        free.append(of_block)
    return Trie(blocks, torch.cat(free, dim=1), node, _member(node))


def _block(before: Tensor, bits: Tensor, node: Tensor) -> tuple[Block, Tensor, Tensor]:
    """The block of `bits` `(V, m)`, the last prefix `(V,)` of every class, and which of its bits are free `(V, m)`.

    `node` `(V,)` is the prefix of every class before the block, of symbols `before` `(V, start)`.
    """
    first = origin = torch.arange(int(node.max()) + 1, device=node.device)  # the prefix that each began with
    parts, free, now = [], [], node
    for bit in bits.unbind(1):
        parent, children, following = _step(now, bit)
        branches = (children >= 0).all(1)
        parts.append((parent, children, branches.nonzero().squeeze(1), origin))
        free.append(branches[now])
        origin, now = origin[parent], following
    used = torch.cat([origin[branching] for _, _, branching, origin in parts]).unique()
    row = torch.zeros_like(first).index_put((used,), torch.arange(len(used), device=node.device))
    levels = [Level(parent, children, some, row[origin[some]]) for parent, children, some, origin in parts]
    return Block(before[_member(node)[used]], row, levels), now, torch.stack(free, dim=1)


def _step(node: Tensor, bit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the prefix `(V,)` and next bit `(V,)` of every class: parents, children, and its prefix after the bit."""
    keys, following = (2 * node + bit).unique(return_inverse=True)
    children = torch.full((int(node.max()) + 1, 2), -1, device=node.device)
    children.view(-1)[keys] = torch.arange(len(keys), device=node.device)
    return keys // 2, children, following


def _member(node: Tensor) -> Tensor:
    """One of the classes with each prefix, for the prefix `(V,)` of every class."""
    classes = torch.arange(len(node), device=node.device)
    return torch.empty(int(node.max()) + 1, dtype=torch.int64, device=node.device).index_put((node,), classes)
