"""What single tokens get beside their codewords, as a DecisionConfig says: dense rows, extra bits, a bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codehead.codes import build
from codehead.codes.codebook import Codebook, PackedCodebook
from codehead.codes.design import minimal_length, whole_number
from codehead.codes.table import CodewordTable
from codehead.config import DecisionConfig
from codehead.decoding.extras import Corrections, Refinement, choose_tokens
from codehead.errors import CodebookError, ConfigurationError
from codehead.head_outputs import CorrectedBits
from codehead.models.hidden import Statistics
from codehead.models.initial import least_squares, token_weights

DESIGN = "additive"
"""Of the extra bits."""


def check_extras(config: DecisionConfig, counts: Tensor) -> None:
    """Raise the ConfigurationError that a decision layer would, as far as counts `(V,)` tell: for a quick start."""
    listed = choose_tokens("dense_rows", config.dense_rows, counts, len(counts))
    longer = choose_tokens("extra_bit_tokens", config.extra_bit_tokens, counts, len(counts))
    _check_extra_bits(longer, config.extra_bits)
    if config.token_bias or len(listed) or len(longer):
        CorrectedBits.check_loss(config.loss)
        CorrectedBits.check_decoder(config.decoder)


def weights_of_tokens(config: DecisionConfig, old: nn.Linear, statistics: Statistics | None) -> Tensor | None:
    """How much every token counts for a code `(V,)`, float64; None if nothing tells them apart.

    ConfigurationError as `build_extras` has it for dense rows.
    """
    listed = _listed(config, old, statistics)
    return token_weights(old, statistics, listed) if statistics is not None or len(listed) else None


def build_extras(
    config: DecisionConfig, codebook: Codebook, old: nn.Linear, statistics: Statistics | None
) -> Corrections | None:
    """What stands beside a codebook, in the dtype of the `old` Softmax head; None if there is nothing.

    ConfigurationError if tokens are counted on by number without statistics, or the code bears no extra bits.
    """
    listed = _listed(config, old, statistics)
    refinement = _extra_bits(config, codebook, old, statistics, listed)
    if not len(listed) and refinement is None and not config.token_bias:
        return None
    return Corrections(codebook.num_classes, listed, config.token_bias, refinement).to(old.weight)


def _listed(config: DecisionConfig, old: nn.Linear, statistics: Statistics | None) -> Tensor:
    counts = None if statistics is None else statistics.counts
    return choose_tokens("dense_rows", config.dense_rows, counts, len(old.weight))


@torch.no_grad()
def _extra_bits(
    config: DecisionConfig, codebook: Codebook, old: nn.Linear, statistics: Statistics | None, listed: Tensor
) -> Refinement | None:
    """The extra symbols of some tokens, or None if there are none.

    An additive code of the rows of the `old` Softmax head, less what a linear head with the codebook can make of them.
    With statistics the rows are as the hidden states see them, weighted by the counts; the `listed` tokens, which have
    rows of their own, count next to nothing.
    """
    counts = None if statistics is None else statistics.counts
    ids = choose_tokens("extra_bit_tokens", config.extra_bit_tokens, counts, codebook.num_classes).long().sort().values
    if not len(ids):
        return None
    if not isinstance(codebook, PackedCodebook) or codebook.is_ternary:
        raise ConfigurationError(
            f"extra_bits makes the codewords of a binary code longer, and {codebook.design!r} is none; choose another "
            "code, or omit extra_bits"
        )
    if old.weight.is_meta:
        raise ConfigurationError(
            f"extra_bits={config.extra_bits} looks at the rows of the model's Softmax head, which is on the meta "
            "device; load the weights first, or omit extra_bits"
        )
    _check_extra_bits(ids, config.extra_bits)
    weights = token_weights(old, statistics, listed)
    rows = _left_over(codebook, old, weights, ids.to(old.weight.device))
    seen = rows if statistics is None else statistics.seen(rows)
    importance = weights[ids.to(weights.device)].cpu().numpy()
    try:
        code = build(
            DESIGN,
            len(ids),
            bits=config.extra_bits,
            seed=config.seed,
            prototypes=seen.cpu().numpy(),
            weights=importance,
        )
    except CodebookError as error:
        raise ConfigurationError(f"extra_bits={config.extra_bits} of {len(ids)} tokens: {error}") from error
    assert isinstance(code, PackedCodebook)
    return Refinement.of(codebook.num_classes, ids, torch.from_numpy(code.sign_plane.copy()), config.extra_bits)


def _check_extra_bits(ids: Tensor, length: int) -> None:
    """Raise ConfigurationError if the tokens `ids` `(K,)` are one, or `length` symbols cannot tell them apart."""
    if len(ids) == 1:
        raise ConfigurationError(
            f"extra_bit_tokens={ids.tolist()} is one token, whose dense row is smaller; use dense_rows"
        )
    if len(ids):
        whole_number("extra_bits", length, minimal_length(len(ids)))


def _left_over(codebook: Codebook, old: nn.Linear, weights: Tensor, ids: Tensor) -> Tensor:
    """The old rows of some tokens `(K, hidden)` in float32, less the nearest that `½ C P + 1 mᵀ` comes to all rows."""
    codewords = 0.5 * CodewordTable(codebook).signs().to(old.weight.device)
    solution, common = least_squares(codewords, old.weight, weights)
    return old.weight[ids].float() - codewords[ids] @ solution.float() - common.float()
