"""Bits conditioned on earlier bits: the likelihood of a codeword as a product along a tree.

Independent bits score every token bit by bit, so they cannot express a distribution in which one bit depends on
another. Here the bits come in blocks, and each block is conditioned on the bits before it, as in classifier chains
(J. Read et al., 2009) and the binary hierarchical Softmax (F. Morin, Y. Bengio, 2005), but with one set of weights
per bit instead of one per inner node:

    z_i = w_i · act(f_b + B_b c_<b) + bias_i        for the bits i of block b, with c_<b ∈ {−1, +1} all earlier bits
    log p(v) = Σ_{i: free} log σ(c_vi z_i)

A bit that is forced by the bits before it, because only one value still leads to a codeword, has probability 1.
What remains is a binary decision at every branching of the tree of codewords, so the V likelihoods sum to 1 by
construction, for any binary code without equal codewords.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.codes.design import whole_number
from codehead.codes.table import CodewordTable
from codehead.decoding.extras import ExtendedHead
from codehead.decoding.numerics import narrowed, no_autocast, roomy, top_k, top_k_among, wide
from codehead.errors import ConfigurationError
from codehead.heads.feedforward import ACTIVATIONS, HEADS, needed, start_values

# The codewords of a binary code as a tree of prefixes, bit by bit.


class Level(NamedTuple):
    """One bit: from N prefixes that end before it to M that end with it. Prefixes are numbered in their order."""

    parent: Tensor
    """`(M,)`: the prefix without this bit."""
    children: Tensor
    """`(N, 2)`: the prefixes extended by −1 and by +1; −1 where no codeword has such a prefix."""
    branching: Tensor
    """`(B,)`: the prefixes that can be extended both ways. For all others the bit is forced."""
    row: Tensor
    """`(B,)`: which of the block's `prefixes` each of these begins with."""


class Block(NamedTuple):
    """Bits that are predicted from the same earlier bits."""

    prefixes: Tensor
    """`(L, start)`, symbols ±1: the distinct sets of earlier bits after which some bit of the block is free."""
    row: Tensor
    """`(N,)`: the row of every prefix that ends before the block; 0 for those that are not among them."""
    levels: list[Level]


class Trie(NamedTuple):
    """The distinct prefixes of V codewords: V − 1 of them branch, however long the codewords are."""

    blocks: list[Block]
    free: Tensor
    """`(V, n)`, bool: whether a bit of a codeword is free, not forced by those before it."""
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


# The chain head: features for blocks of bits; later blocks are also given the bits before them.


def block_starts(num_bits: int, block: int) -> list[int]:
    """The first bit of every block of `block` bits; if they do not divide n, the first block is the short one."""
    return [0, *range((num_bits - 1) % block + 1, num_bits, block)]


@HEADS.register("chain")
class ChainHead(nn.Module):
    """Hidden states `(…, hidden)` → features `(…, blocks · width)` for a `Chain` in the decision layer.

    One linear map, without bias: `hidden · blocks · width` parameters. The n bits are cut into blocks of `block` bits,
    the first of which takes the remainder. The `Chain` adds the contribution of earlier bits, applies the `activation`
    and holds the parameters of the bits.

    `weight` is three-dimensional, `(blocks, width, hidden)`, so that it is never mistaken for a Softmax matrix.
    """

    def __init__(
        self,
        hidden_size: int,
        num_bits: int,
        width: int | None = None,
        block: int = 1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        ACTIVATIONS.get(activation)
        self.hidden_size = whole_number("hidden_size", hidden_size, 1)
        self.num_bits = whole_number("num_bits", num_bits, 1)
        self.width = needed("chain", "width", width, "the features of each block of bits")
        self.block = min(whole_number("block", block, 1), num_bits)
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(len(block_starts(num_bits, self.block)), self.width, hidden_size))
        self.reset_parameters()

    @property
    def out_features(self) -> int:
        """The features: blocks · width."""
        return self.weight.shape[0] * self.width

    def reset_parameters(self) -> None:
        """As `start_values`."""
        start_values([self.weight])

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, hidden)` → `(…, blocks · width)`."""
        return F.linear(hidden, self.weight.flatten(0, 1))

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, num_bits={self.num_bits}, width={self.width}, block={self.block}"


CHUNK_NUMBERS = 2**24
"""Hidden units, or scores, computed at a time when codewords are scored (64 MiB in float32)."""


@final
class Chain(nn.Module):
    """Conditions blocks of bits on the bits before them; reads features `(…, blocks · width)` of a `ChainHead`.

    Parameters: `weight` `(n, width)` and `bias` `(n,)` of the bits, and `context` `(Σ_b start_b, width)`, the stacked
    rows of all B_b (None with a single block).
    """

    context: nn.Parameter | None

    def __init__(self, num_bits: int, width: int, block: int = 1, activation: str = "relu") -> None:
        super().__init__()
        self.num_bits, self.width, self.block = num_bits, width, block
        self.starts = block_starts(num_bits, block)
        self.blocks = len(self.starts)
        self.activation = ACTIVATIONS.get(activation)
        self.weight = nn.Parameter(torch.empty(num_bits, width))
        self.bias = nn.Parameter(torch.empty(num_bits))
        rows = sum(self.starts)
        self.register_parameter("context", nn.Parameter(torch.empty(rows, width)) if rows else None)
        self._trie: tuple[Tensor, Trie] | None = None
        self.reset_parameters()

    @classmethod
    def of(cls, head: nn.Module) -> Chain | None:
        """The chain that the features of a `ChainHead` are for; None for any other head."""
        bits = head.bits if isinstance(head, ExtendedHead) else head
        return cls(bits.num_bits, bits.width, bits.block, bits.activation) if isinstance(bits, ChainHead) else None

    @property
    def num_features(self) -> int:
        """blocks · width: the outputs that the head must have."""
        return self.blocks * self.width

    def reset_parameters(self) -> None:
        """Uniform in ±1/√fan_in, as `nn.Linear` starts; bias at zero."""
        start_values([self.weight], [self.bias])
        if self.context is not None:
            nn.init.uniform_(self.context, -1 / math.sqrt(self.num_bits), 1 / math.sqrt(self.num_bits))

    def forward(self, features: Tensor, codewords: Tensor) -> Tensor:
        """Bit logits `(…, n)` of features `(…, blocks · width)`, given the earlier blocks of `codewords` `(…, n)`.

        All blocks at once: this is teacher forcing, for codewords that are known.
        """
        hidden = features
        if self.context is not None:
            hidden = features + codewords.to(features.dtype) @ self._dense_context()
        hidden = self.activation(hidden.unflatten(-1, (self.blocks, self.width)))
        short = self.blocks * self.block - self.num_bits  # bits missing from the first block
        rows = F.pad(self.weight, (0, 0, short, 0)).unflatten(0, (self.blocks, self.block))
        return torch.einsum("...bd,bmd->...bm", hidden, rows).flatten(-2)[..., short:] + self.bias

    def check(self, table: CodewordTable) -> None:
        """Refuse a code that does not suit this chain; on the meta device, as far as can be checked there.

        Raises:
            ConfigurationError: the code has another length, is ternary or one_vs_all, has equal codewords, or is
                redundant beyond use: all bits of a block are forced by those before them.
        """
        if table.is_implicit or table.is_ternary:
            kind = "one_vs_all" if table.is_implicit else "a ternary"
            raise ConfigurationError(
                f"head 'chain' goes down a tree of bits, which {kind} code is not; choose a binary code, such as "
                "code='minimal'"
            )
        if self.num_bits != table.length:
            raise ConfigurationError(
                f"the chain has {self.num_bits} bits but the code has length {table.length}; build the head with "
                "num_bits=codebook.length"
            )
        if table.sign_plane is not None and not table.sign_plane.is_meta:
            self.trie(table)

    def trie(self, table: CodewordTable) -> Trie:
        """The tree of the codewords; the same until the table changes."""
        if not torch.compiler.is_compiling():
            return self._current_trie(table)
        if self._trie is not None:  # nothing is written to inside a graph
            return self._trie[1]
        return torch.compiler.disable(self._current_trie)(table)  # a decorator would load the compiler at import

    def _current_trie(self, table: CodewordTable) -> Trie:
        signs = table.signs()
        if self._trie is None or self._trie[0] is not signs:
            with torch.inference_mode(False):  # it may be used in training later
                trie = build_trie(signs, self.starts)
            _check_codewords(trie, table)
            self._trie = (signs, trie)
        return self._trie[1]

    def token_scores(self, features: Tensor, table: CodewordTable) -> Tensor:
        """Log-likelihoods `(…, V)` of all tokens, whose exponentials sum to 1. Never under autocast.

        Every distinct prefix is evaluated once. Without gradients, memory for CHUNK_NUMBERS hidden units is enough.
        """
        trie = self.trie(table)
        most = max(table.num_classes, *(len(block.prefixes) * self.width for block in trie.blocks))
        flat = roomy(features).reshape(-1, self.blocks, self.width)
        with no_autocast(features.device.type):
            parts = [self._scores(some, trie) for some in flat.split(max(1, CHUNK_NUMBERS // most))]
        scores = torch.cat(parts).view(*features.shape[:-1], table.num_classes)
        return narrowed(scores, wide(features[..., :0]).dtype, shifted=False)

    def _scores(self, features: Tensor, trie: Trie) -> Tensor:
        """`(tokens, blocks, width)` → `(tokens, V)`: the log-probabilities of all prefixes, level by level."""
        scores = features.new_zeros(len(features), 1)
        for b, block in enumerate(trie.blocks):
            logits = self.block_logits(features[:, b], b, block.prefixes.unsqueeze(0))
            for bit, level in enumerate(block.levels):
                z = logits[:, level.row, bit]
                both = level.children[level.branching].T.flatten()
                steps = torch.cat([F.logsigmoid(-z), F.logsigmoid(z)], dim=1)
                scores = scores[:, level.parent].index_add(1, both, steps)
        return scores[:, trie.leaf]

    def block_logits(self, features: Tensor, b: int, prefixes: Tensor) -> Tensor:
        """Logits `(tokens, P, m)` of the m bits of block b after each of the `prefixes` `(tokens or 1, P, start)`.

        `features` `(tokens, width)` are those of the block; computed in their dtype.
        """
        start, stop = self.starts[b], [*self.starts, self.num_bits][b + 1]
        context = prefixes.to(features.dtype) @ self._context_of(b).to(features.dtype)
        hidden = self.activation(features.unsqueeze(1) + context)
        return hidden @ self.weight[start:stop].to(features.dtype).T + self.bias[start:stop].to(features.dtype)

    def _context_of(self, b: int) -> Tensor:
        """`(start, width)`: what every earlier bit adds to the features of block b."""
        rows = self.weight[:0] if self.context is None else self.context
        first = sum(self.starts[:b])
        return rows[first : first + self.starts[b]]

    def _dense_context(self) -> Tensor:
        """`(n, blocks · width)`: the same for all blocks side by side, zero for bits that are not earlier."""
        parts = [F.pad(self._context_of(b), (0, 0, 0, self.num_bits - start)) for b, start in enumerate(self.starts)]
        return torch.cat(parts, dim=1)

    def _apply(self, *args: Any, **kwargs: Any) -> Chain:
        self._trie = None  # it lies where the table lay
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trie": None}  # pickles and deep copies make their own

    def extra_repr(self) -> str:
        return f"num_bits={self.num_bits}, width={self.width}, block={self.block}"


def _check_codewords(trie: Trie, table: CodewordTable) -> None:
    if len(trie.classes) < table.num_classes:
        raise ConfigurationError(
            f"head 'chain' needs a different codeword for every token, but {table.num_classes} tokens share "
            f"{len(trie.classes)}; choose a code without equal rows"
        )
    if not all(len(block.prefixes) for block in trie.blocks):
        free = int(trie.free.any(dim=0).sum())
        raise ConfigurationError(
            f"only {free} of the {table.length} bits of this code are ever free: the others follow from the bits "
            "before them, so that a block of head 'chain' would have nothing to learn. A chain needs no redundancy: "
            "choose code='minimal' or a code of fewer bits"
        )


# The most probable codewords of a chain, exactly, without scoring all of them.


WIDTHS = (16, 128)
"""Beam widths that are tried before all codewords are scored."""
WORTHWHILE = 16
"""A beam is tried if there are at least this many times more codewords than it keeps."""


def best_tokens(
    chain: Chain, features: Tensor, table: CodewordTable, k: int = 1, ties: str | int = "lowest"
) -> tuple[Tensor, Tensor]:
    """Ids and log-likelihoods `(…, k)` of the k most probable tokens for features `(…, blocks · width)`, best first.

    Exact: a codeword is at most as likely as its prefix, so nothing was missed if every prefix that a beam dropped is
    less likely than the k-th token it found. (That is certain once the beam is wider than 1 over that token's
    probability, since w + 1 prefixes of one length cannot all have more than 1 / (w + 1).) Other positions are searched
    again with a wider beam, and finally by scoring all tokens.

    Raises:
        ConfigurationError: k or `ties` is out of range.
    """
    flat = roomy(features).reshape(-1, features.shape[-1])
    top_k(flat.new_zeros(0, table.num_classes), k, ties)  # refuses what is out of range
    ids = torch.zeros(len(flat), k, dtype=torch.int64, device=flat.device)
    scores = flat.new_zeros(len(flat), k)
    left = torch.arange(len(flat), device=flat.device)
    with no_autocast(flat.device.type):
        for width in WIDTHS:
            if k <= width and width * WORTHWHILE <= table.num_classes and len(left):
                found, values, sure = _search(chain, flat[left], table, width, k, ties)
                ids[left[sure]], scores[left[sure]] = found[sure], values[sure]
                left = left[~sure]
    if len(left):
        values = chain.token_scores(flat[left], table)
        found = top_k(values, k, ties)
        ids[left], scores[left] = found, values.gather(-1, found)
    scores = narrowed(scores, wide(features[..., :0]).dtype, shifted=False)
    return ids.view(*features.shape[:-1], k), scores.view(*features.shape[:-1], k)


def _search(
    chain: Chain, features: Tensor, table: CodewordTable, width: int, k: int, ties: str | int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and scores `(tokens, k)` found by a beam, and where `(tokens,)` they are certainly the best."""
    trie, parts = chain.trie(table), []
    for some in features.split(max(1, CHUNK_NUMBERS // (width * chain.width))):
        leaves, scores, dropped = _beam(chain, some.unflatten(-1, (chain.blocks, chain.width)), trie, width)
        found, values = top_k_among(trie.classes[leaves], scores, k, table.num_classes, ties)
        parts.append((found, values, values[:, -1] > dropped))
    found, values, sure = (torch.cat(part) for part in zip(*parts, strict=True))
    return found, values, sure


def _beam(chain: Chain, features: Tensor, trie: Trie, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest codewords and their log-likelihoods `(tokens, ≤ width)`, and that of the best prefix dropped.

    `features` `(tokens, blocks, width)`. Placeholders for missing prefixes in a beam have the score −∞.
    """
    nodes = torch.zeros(len(features), 1, dtype=torch.int64, device=features.device)
    scores = features.new_zeros(len(features), 1)
    dropped = features.new_full((len(features),), -torch.inf)
    for b, block in enumerate(trie.blocks):
        logits = chain.block_logits(features[:, b], b, block.prefixes[block.row[nodes]])
        for bit, level in enumerate(block.levels):
            children, extended = _extended(nodes, scores, logits[..., bit], level)
            kept = extended.topk(min(width + 1, extended.shape[1]), dim=1)
            if kept.values.shape[1] > width:
                dropped = torch.maximum(dropped, kept.values[:, width])
            scores, order = kept.values[:, :width], kept.indices[:, :width]
            nodes = children.gather(1, order)
            logits = logits.take_along_dim((order // 2).unsqueeze(-1), dim=1)
    return nodes, scores, dropped


def _extended(nodes: Tensor, scores: Tensor, logits: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """The prefixes one bit longer than `nodes` `(tokens, w)`, 0 where there is none, and scores: `(tokens, 2w)`."""
    children = level.children[nodes]
    exists = children >= 0
    steps = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=-1)
    extended = scores.unsqueeze(-1) + torch.where(exists.all(-1, keepdim=True), steps, 0.0)
    return children.clamp(min=0).flatten(1), extended.masked_fill(~exists, -torch.inf).flatten(1)
