"""What single tokens get beside their codewords, as `attach` is told it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from codehead.codes.codebook import Codebook
from codehead.decoding.corrections import Corrections, choose_tokens
from codehead.models.hidden import Statistics
from codehead.models.least_squares import token_weights
from codehead.models.refining import check_refined, refine
from codehead.readings import CorrectedBits

TOKENS = ("shortlist", "refined")
"""The arguments that choose tokens."""


@dataclass(frozen=True)
class SingleTokens:
    """The arguments of `attach` that name tokens, or give each of them a number."""

    shortlist: int | Sequence[int] = 0
    shortlist_split: bool = False
    token_bias: bool = False
    token_scale: bool = False
    refined: int | Sequence[int] = 0
    refined_bits: int = 64

    def check(self, counts: Tensor, loss: str, decoder: str) -> None:
        """Raise the ConfigurationError that a decision layer would, as far as counts `(V,)` tell: for a quick start."""
        listed, longer = (choose_tokens(name, getattr(self, name), counts, len(counts)) for name in TOKENS)
        check_refined(longer, self.refined_bits)
        if self._numbers or len(listed) or len(longer):
            CorrectedBits.check_loss(loss)
            CorrectedBits.check_decoder(decoder)

    @property
    def _numbers(self) -> bool:
        """Whether all tokens get a number, or "other" does."""
        return bool(self.token_bias or self.token_scale or self.shortlist_split)

    def weights(self, old: nn.Linear, statistics: Statistics | None) -> Tensor | None:
        """How much every token counts for a code `(V,)`, float64; None if nothing tells them apart.

        ConfigurationError as `corrections` has it for a shortlist.
        """
        listed = self._listed(old, statistics)
        return token_weights(old, statistics, listed) if statistics is not None or len(listed) else None

    def _listed(self, old: nn.Linear, statistics: Statistics | None) -> Tensor:
        counts = None if statistics is None else statistics.counts
        return choose_tokens("shortlist", self.shortlist, counts, len(old.weight))

    def corrections(
        self, codebook: Codebook, old: nn.Linear, statistics: Statistics | None, seed: int
    ) -> Corrections | None:
        """The corrections beside a codebook, in the dtype of the `old` Softmax head; None if there is nothing to add.

        ConfigurationError if an argument is impossible, or tokens are counted on by number without statistics.
        """
        listed = self._listed(old, statistics)
        refinement = refine(codebook, old, self.refined, self.refined_bits, statistics, seed, listed)
        if not len(listed) and refinement is None and not self._numbers:
            return None
        made = Corrections(
            codebook.num_classes,
            listed,
            bool(self.token_bias),
            refinement,
            token_scale=bool(self.token_scale),
            split=bool(self.shortlist_split),
        )
        return made.to(old.weight)
