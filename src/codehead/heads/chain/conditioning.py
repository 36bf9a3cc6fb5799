"""Bits that see earlier bits: the likelihood of a codeword as a product along a tree.

Independent bits give every token a score of its bits alone, so that a distribution in which one bit depends on another
is out of their reach. Here the bits come in blocks, and each block is conditioned on the bits before it, as in
classifier chains (J. Read et al., 2009) and the binary hierarchical Softmax (F. Morin, Y. Bengio, 2005), but with one
set of weights per bit in place of one per inner node:

    z_i = w_i · act(f_b + B_b c_<b) + bias_i        for the bits i of block b, with c_<b ∈ {−1, +1} all earlier bits
    log p(v) = Σ_{i: free} log σ(c_vi z_i)

A bit that the bits before it force, because only one of its values still leads to a codeword, has probability 1. What
remains is a binary decision at every branching of the tree of codewords, so the V likelihoods sum to 1 by
construction, for any binary code without equal codewords.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.codes.table import CodewordTable
from codehead.decoding.extras.dense_rows import ShortlistHead
from codehead.decoding.precision import narrowed, no_autocast, roomy, wide
from codehead.errors import ConfigurationError
from codehead.heads.chain.head import ChainHead, block_starts
from codehead.heads.chain.trie import Trie, build_trie
from codehead.heads.mtl import ACTIVATIONS

CHUNK_NUMBERS = 2**24
"""Hidden units, or scores, computed at a time when codewords are scored (64 MiB in float32)."""


@final
class Chain(nn.Module):
    """Conditions blocks of bits on the bits before them; reads features `(…, blocks · width)` of a `ChainHead`.

    Parameters: `weight` `(n, width)` and `bias` `(n,)` of the bits, `context` `(Σ_b start_b, width)`, the rows of every
    B_b below each other (None with a single block).
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
        bits = head.bits if isinstance(head, ShortlistHead) else head
        return cls(bits.num_bits, bits.width, bits.block, bits.activation) if isinstance(bits, ChainHead) else None

    @property
    def num_features(self) -> int:
        """blocks · width: the outputs that the head must have."""
        return self.blocks * self.width

    def reset_parameters(self) -> None:
        """Uniform in ±1/√fan_in, as `nn.Linear` starts; bias at zero."""
        nn.init.uniform_(self.weight, -1 / math.sqrt(self.width), 1 / math.sqrt(self.width))
        nn.init.zeros_(self.bias)
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
        short = self.blocks * self.block - self.num_bits  # bits that the first block has too few
        rows = F.pad(self.weight, (0, 0, short, 0)).unflatten(0, (self.blocks, self.block))
        return torch.einsum("...bd,bmd->...bm", hidden, rows).flatten(-2)[..., short:] + self.bias

    def check(self, table: CodewordTable) -> None:
        """Refuse a code that is no tree for this chain; on the meta device, as far as can be seen there.

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
        if torch.compiler.is_compiling() and self._trie is not None:  # nothing is written to inside a graph
            return self._trie[1]
        return self._current_trie(table)

    @torch.compiler.disable
    def _current_trie(self, table: CodewordTable) -> Trie:
        signs = table.signs()
        if self._trie is None or self._trie[0] is not signs:
            with torch.inference_mode(False):  # it may serve in training later
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
            f"head 'chain' needs a codeword of its own for every token, but {table.num_classes} tokens share "
            f"{len(trie.classes)}; choose a code without equal rows"
        )
    if not all(len(block.prefixes) for block in trie.blocks):
        free = int(trie.free.any(dim=0).sum())
        raise ConfigurationError(
            f"only {free} of the {table.length} bits of this code are ever free: the others follow from the bits "
            "before them, so that a block of head 'chain' would have nothing to learn. A chain needs no redundancy: "
            "choose code='minimal' or a code of fewer bits"
        )
