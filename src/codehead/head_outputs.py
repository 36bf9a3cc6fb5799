"""How the outputs of a head are read: independent bits, bits with per-token extras, a chain of bits, or tokens."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding import (
    Decoded,
    Weights,
    decode,
    posterior_scores,
    refuse_non_finite,
    refuse_other_length,
    scanned,
)
from codehead.decoding.extras import Corrections
from codehead.decoding.numerics import narrowed, require_real, roomy, top_k, wide
from codehead.errors import ConfigurationError
from codehead.heads.chain import Chain, best_tokens
from codehead.losses import LOSSES, Loss, codeword, of_nodes


class HeadOutputs:
    """n bit logits; with the one_vs_all code, token logits. The base of all other outputs `(…, num_outputs)` of a head.

    Derives bits, the loss, and the scores and order of tokens. A view of a decision layer's modules, made anew whenever
    it is needed, since libraries (PEFT) replace modules.
    """

    losses: ClassVar[tuple[str, ...]] = ()
    """The losses that can train such outputs; empty if all can."""
    decoders: ClassVar[tuple[str, ...]] = ()
    """The decoders that can rank tokens by them; empty if all can."""
    no_loss: ClassVar[str] = ""
    no_decoder: ClassVar[str] = ""

    def __init__(self, table: CodewordTable) -> None:
        self.table = table

    @property
    def num_outputs(self) -> int:
        """The number of outputs that the head must have."""
        return self.table.length

    def check(self) -> None:
        """Raise a ConfigurationError if the code does not suit such outputs."""

    @classmethod
    def check_loss(cls, name: str) -> None:
        """Raise a ConfigurationError if the loss cannot train such outputs."""
        if cls.losses and name not in cls.losses:
            raise ConfigurationError(f"loss={name!r} {cls.no_loss}; choose loss={cls.losses[0]!r}")

    @classmethod
    def check_decoder(cls, name: str) -> None:
        """Raise a ConfigurationError if the decoder cannot rank tokens by such outputs."""
        if cls.decoders and name not in cls.decoders:
            raise ConfigurationError(f"decoder={name!r} {cls.no_decoder}; choose decoder={cls.decoders[0]!r}")

    def bit_logits(self, outputs: Tensor) -> Tensor:
        """The bit logits `(…, n)`, if they depend on the outputs alone."""
        return outputs

    def nodes(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Bit logits `(…, n)` and their target symbols for labels `(…)`; 0 where there is nothing to predict."""
        return self.bit_logits(outputs), self.table.lookup(labels)

    def loss(self, name: str, outputs: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Loss:
        """The loss called `name`; labels of −100 are ignored."""
        return LOSSES.get(name)(outputs, labels, self.table, num_items)

    def scores(self, outputs: Tensor) -> Tensor:
        """Token scores `(…, V)`, whose softmax is the codeword posterior."""
        refuse_other_length(outputs, self.table)
        return outputs if self.table.is_implicit else posterior_scores(outputs, self.table)

    def decode(self, outputs: Tensor, k: int, ties: str | int, decoder: str, weights: Weights | None) -> Decoded:
        """The k best tokens under a decoder."""
        return decode(outputs, self.table, decoder=decoder, k=k, ties=ties, weights=weights)


@final
class CorrectedBits(HeadOutputs):
    """n bit logits, then m for the extra bits of some tokens, one logit per token with a dense row; a bias per token.

    These corrections are added to log-probabilities, so they need the only loss that can train them, and the decoder
    that ranks by log-probability.
    """

    losses = ("codeword",)
    decoders = ("likelihood",)
    no_loss = "cannot train dense rows or a bias per token, which change token scores but no bit"
    no_decoder = "does not score tokens by their log-probability, which dense rows or a bias per token add to"

    def __init__(self, table: CodewordTable, corrections: Corrections) -> None:
        super().__init__(table)
        self.corrections = corrections

    def check(self) -> None:
        if self.table.is_implicit:
            raise ConfigurationError(
                "the one_vs_all code has a row and, with head_params={'bias': True}, a bias for every token already; "
                "omit dense_rows and token_bias"
            )
        known, classes = self.corrections.num_classes, self.table.num_classes
        if known != classes:
            raise ConfigurationError(f"the corrections are for {known} tokens but the code has {classes} classes")

    @property
    def num_outputs(self) -> int:
        return self.table.length + self.corrections.num_outputs

    def bit_logits(self, outputs: Tensor) -> Tensor:
        return outputs[..., : self.table.length]

    def loss(self, name: str, outputs: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Loss:
        return codeword(outputs, labels, self.table, num_items, scores=self.scores)

    def scores(self, outputs: Tensor) -> Tensor:
        exact = roomy(outputs)
        scores: Tensor = self.corrections(
            posterior_scores(self.bit_logits(exact), self.table), exact[..., self.table.length :]
        )
        return narrowed(scores, wide(outputs[..., :0]).dtype, shifted=True)

    def decode(self, outputs: Tensor, k: int, ties: str | int, decoder: str, weights: Weights | None) -> Decoded:
        found = scanned("auto", outputs, self.table, decoder, k, ties, self.corrections)
        if found is not None:
            return found
        require_real("bit logits", outputs)
        refuse_non_finite(outputs)
        scores = self.scores(roomy(outputs))
        ids = top_k(scores, k, ties)
        return Decoded(ids, narrowed(scores.gather(-1, ids), wide(outputs[..., :0]).dtype, shifted=True))


@final
class Tokens(HeadOutputs):
    """Log-probabilities of all tokens, which no loss and no decoder can read as bits."""

    losses = ("codeword",)
    decoders = ("likelihood",)
    no_loss = no_decoder = "looks at single bits, but this head gives log-probabilities of tokens"

    def check(self) -> None:
        if not self.table.is_implicit:
            raise ConfigurationError(
                "this head gives log-probabilities of tokens, which are not the bits of a code; choose "
                "code='one_vs_all', loss='codeword', decoder='likelihood'"
            )


@final
class ChainedBits(HeadOutputs):
    """Features of blocks of bits, each conditioned on the bits before it: token scores are log-probabilities.

    Both losses use only the bits of the label: "codeword" sums over the free ones, which is the negative
    log-likelihood of the token; "bitwise" takes their mean.
    """

    losses = ("bitwise", "codeword")
    decoders = ("likelihood",)
    no_loss = no_decoder = "reads all bits at once, but those of head 'chain' depend on each other"

    def __init__(self, table: CodewordTable, chain: Chain) -> None:
        super().__init__(table)
        self.chain = chain

    def check(self) -> None:
        self.chain.check(self.table)

    @property
    def num_outputs(self) -> int:
        return self.chain.num_features

    def bit_logits(self, outputs: Tensor) -> Tensor:
        raise ConfigurationError(
            "the bits of head 'chain' depend on the bits before them, so there are no bit logits without a token; "
            "give the tokens: decision.nodes(model.head_outputs(...), labels)"
        )

    def nodes(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        codewords = self.table.lookup(labels)
        return self.chain(outputs, codewords), codewords * self.chain.trie(self.table).free[labels]

    def loss(self, name: str, outputs: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Loss:
        return of_nodes(outputs, labels, self.table, num_items, self.nodes, per_bit=name == "bitwise")

    def scores(self, outputs: Tensor) -> Tensor:
        return self.chain.token_scores(outputs, self.table)

    def decode(self, outputs: Tensor, k: int, ties: str | int, decoder: str, weights: Weights | None) -> Decoded:
        require_real("features", outputs)
        refuse_non_finite(outputs)
        return Decoded(*best_tokens(self.chain, outputs, self.table, k, ties))
