"""What single tokens get beside their codewords, as `attach` is told it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from codehead.codes.codebook import Codebook
from codehead.decoding.corrections import Corrections, choose_tokens
from codehead.models.hidden import Statistics
from codehead.models.refining import refine


@dataclass(frozen=True)
class SingleTokens:
    """The arguments of `attach` that name tokens, or give each of them a number."""

    shortlist: int | Sequence[int]
    shortlist_split: bool
    token_bias: bool
    token_scale: bool
    refined: int | Sequence[int]
    refined_bits: int

    def corrections(
        self, codebook: Codebook, old: nn.Linear, statistics: Statistics | None, seed: int
    ) -> Corrections | None:
        """The corrections beside a codebook, in the dtype of the `old` Softmax head; None if there is nothing to add.

        ConfigurationError if an argument is impossible, or tokens are counted on by number without statistics.
        """
        counts = None if statistics is None else statistics.counts
        refinement = refine(codebook, old, self.refined, self.refined_bits, statistics, seed)
        listed = choose_tokens("shortlist", self.shortlist, counts, codebook.num_classes)
        numbered = self.token_bias or self.token_scale or self.shortlist_split
        if not len(listed) and refinement is None and not numbered:
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
