"""The most probable codewords of a chain, exactly, without scoring all of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.codes.table import CodewordTable
from codehead.decoding.numerics import narrowed, no_autocast, roomy, top_k, top_k_among, wide
from codehead.heads.chain import CHUNK_NUMBERS, Chain, Level, Trie

WIDTHS = (16, 128)
"""Beams that are tried before all codewords are scored."""
WORTHWHILE = 16
"""A beam is tried if there are so many times more codewords than it keeps."""


def best_tokens(
    chain: Chain, features: Tensor, table: CodewordTable, k: int = 1, ties: str | int = "lowest"
) -> tuple[Tensor, Tensor]:
    """Ids and log-likelihoods `(…, k)` of the k most probable tokens for features `(…, blocks · width)`, best first.

    Exact: the likelihood of a codeword is at most that of its prefix, so where every prefix that a beam has dropped is
    less likely than the k-th token it found, nothing was missed. (That is certain once the beam is wider than 1 over
    that token's probability, since w + 1 prefixes of one length cannot all have more than 1 / (w + 1).) Other
    positions are searched again with a wider beam, and at last by scoring all tokens.

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
    """Ids and scores `(tokens, k)` found by a beam, and where `(tokens,)` they are surely the best."""
    trie, parts = chain.trie(table), []
    for some in features.split(max(1, CHUNK_NUMBERS // (width * chain.width))):
        leaves, scores, dropped = _beam(chain, some.unflatten(-1, (chain.blocks, chain.width)), trie, width)
        found, values = top_k_among(trie.classes[leaves], scores, k, table.num_classes, ties)
        parts.append((found, values, values[:, -1] > dropped))
    found, values, sure = (torch.cat(part) for part in zip(*parts, strict=True))
    return found, values, sure


def _beam(chain: Chain, features: Tensor, trie: Trie, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest codewords and their log-likelihoods `(tokens, ≤ width)`, and that of the best prefix dropped.

    `features` `(tokens, blocks, width)`. What fills a beam in place of a missing prefix has the score −∞.
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
    """The prefixes one bit longer than `nodes` `(tokens, w)`, by 0 where there is none, and scores: `(tokens, 2w)`."""
    children = level.children[nodes]
    exists = children >= 0
    steps = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=-1)
    extended = scores.unsqueeze(-1) + torch.where(exists.all(-1, keepdim=True), steps, 0.0)
    return children.clamp(min=0).flatten(1), extended.masked_fill(~exists, -torch.inf).flatten(1)
