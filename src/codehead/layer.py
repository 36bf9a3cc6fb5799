"""The decision layer: codebook + head + loss + decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codehead.codes.codebook import Codebook
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, Decoded, FittedDecoder, decode, fit, refuse_non_finite, token_scores
from codehead.decoding.corrections import Corrections
from codehead.decoding.fitted import empty_weights
from codehead.decoding.topk import top_k
from codehead.errors import ConfigurationError
from codehead.losses import IGNORE, LOSSES, codeword

WEIGHT = "decoder_"
"""Before the names of a decoder's weights in a state dict."""
CORRECTED_LOSS, CORRECTED_DECODER = "codeword", "likelihood"
"""The loss and the decoder that corrections go with."""


class Decision(nn.Module):
    """What bit logits mean: their loss, the probability of every token, the nearest tokens.

    Holds the coding matrix and the choice of loss and decoder; of parameters only the bias of `corrections`. A decoder
    that is fitted to predictions adds its weights as buffers, which are saved in a checkpoint; they are zeros until
    `fit_decoder`.

    With `corrections` the outputs of the head are n bit logits and, after them, one logit per token of the shortlist.
    What is added to scores of single tokens is measured in log-probability, so it needs the loss "codeword", which
    alone can train it, and the decoder "likelihood".
    """

    node_loss: Tensor | None
    """`(n,)`: mean binary cross entropy of every node in the last call of `loss`; None before it or without nodes."""

    def __init__(
        self,
        codebook: Codebook | CodewordTable,
        loss: str = "bitwise",
        decoder: str = "likelihood",
        corrections: Corrections | None = None,
    ) -> None:
        super().__init__()
        self.table = codebook if isinstance(codebook, CodewordTable) else CodewordTable(codebook)
        self.corrections = corrections
        _check_corrections(corrections, self.table)
        self.loss_name = loss
        self._weight_names: tuple[str, ...] = ()
        self.decoder_name = decoder
        self.node_loss = None

    @property
    def num_outputs(self) -> int:
        """n + K: the outputs that a head must have."""
        return self.table.length + (0 if self.corrections is None else self.corrections.num_rows)

    @property
    def loss_name(self) -> str:
        """The loss; another may be set."""
        return self._loss_name

    @loss_name.setter
    def loss_name(self, name: str) -> None:
        LOSSES.get(name)
        if self.corrections is not None and name != CORRECTED_LOSS:
            raise ConfigurationError(
                f"loss={name!r} cannot train a shortlist or a bias per token, which change the scores of tokens and no "
                f"bit; choose loss={CORRECTED_LOSS!r}"
            )
        self._loss_name = name

    @property
    def decoder_name(self) -> str:
        """The decoder that ranks tokens; another may be set, which forgets weights that it does not share."""
        return self._decoder_name

    @decoder_name.setter
    def decoder_name(self, name: str) -> None:
        decoder = DECODERS.get(name)
        if self.corrections is not None and name != CORRECTED_DECODER:
            raise ConfigurationError(
                f"decoder={name!r} does not score tokens by their log-probability, which a shortlist or a bias per "
                f"token is added to; choose decoder={CORRECTED_DECODER!r}"
            )
        shapes = decoder.shapes(self.table) if isinstance(decoder, FittedDecoder) else {}
        if tuple(shapes) != self._weight_names:
            for old in self._weight_names:
                delattr(self, WEIGHT + old)
            for new, values in empty_weights(shapes, self.table).items():
                self.register_buffer(WEIGHT + new, values)
            self._weight_names = tuple(shapes)
        self._decoder_name = name

    @property
    def decoder_weights(self) -> dict[str, Tensor] | None:
        """What `fit_decoder` has learnt, zeros before it; None if the decoder has no weights."""
        return {name: getattr(self, WEIGHT + name) for name in self._weight_names} or None

    def fit_decoder(self, bit_logits: Tensor, labels: Tensor) -> None:
        """Fit the decoder's weights to bit logits `(…, n)` for labels `(…)` aligned with them; −100 is ignored.

        The bit logits should come from a validation split. Raises a ConfigurationError if the decoder has nothing to
        fit or the shapes do not match, and a DataError if there is no label or one is not a class.
        """
        if bit_logits.shape[:-1] != labels.shape:
            raise ConfigurationError(
                f"labels of shape {tuple(labels.shape)} do not fit bit logits of shape {tuple(bit_logits.shape)}; "
                "every position needs one label"
            )
        known = labels != IGNORE
        weights = fit(self.decoder_name, bit_logits[known.to(bit_logits.device)], labels[known], self.table)
        for name, values in weights.items():
            setattr(self, WEIGHT + name, values)

    def bit_logits(self, outputs: Tensor) -> Tensor:
        """The bit logits `(…, n)` among the outputs `(…, n + K)` of a head."""
        return outputs if self.corrections is None else outputs[..., : self.table.length]

    def loss(self, outputs: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Scalar loss of a head's outputs `(…, n + K)` for labels `(…)` aligned with them; −100 is ignored."""
        if self.corrections is None:
            loss = LOSSES.get(self.loss_name)(outputs, labels, self.table, num_items_in_batch)
        else:
            loss = codeword(outputs, labels, self.table, num_items_in_batch, scores=self.logits)
        self.node_loss = loss.per_node
        return loss.value

    def logits(self, outputs: Tensor) -> Tensor:
        """`(…, n + K)` → `(…, V)` in float32, whose softmax is the codeword posterior.

        With the one_vs_all code these are the outputs themselves, untouched and in their own dtype.
        """
        if self.table.is_implicit:
            return outputs
        scores = token_scores(self.bit_logits(outputs), self.table)
        return scores if self.corrections is None else self.corrections(scores, outputs[..., self.table.length :])

    def decode(self, outputs: Tensor, k: int = 1, ties: str | int = "lowest") -> Decoded:
        """The `k` nearest tokens of every position under the chosen decoder."""
        if self.corrections is None:
            return decode(outputs, self.table, decoder=self.decoder_name, k=k, ties=ties, weights=self.decoder_weights)
        refuse_non_finite(outputs)
        scores = self.logits(outputs)
        ids = top_k(scores, k, ties)
        return Decoded(ids, scores.gather(-1, ids))

    def extra_repr(self) -> str:
        return f"loss={self.loss_name!r}, decoder={self.decoder_name!r}"


def _check_corrections(corrections: Corrections | None, table: CodewordTable) -> None:
    if corrections is not None and table.is_implicit:
        raise ConfigurationError(
            "the one_vs_all code has a row and, with head_params={'bias': True}, a bias for every token already; leave "
            "shortlist and token_bias away"
        )
    if corrections is not None and corrections.num_classes != table.num_classes:
        raise ConfigurationError(
            f"the corrections are for {corrections.num_classes} tokens but the code has {table.num_classes} classes"
        )


class DecisionLayer(nn.Module):
    """A drop-in for a Softmax layer in any model: hidden states `(…, hidden)` → token logits `(…, V)`.

    Models of transformers need not be touched by hand: see `codehead.attach`.
    """

    def __init__(
        self,
        codebook: Codebook,
        head: nn.Module,
        loss: str = "bitwise",
        decoder: str = "likelihood",
        corrections: Corrections | None = None,
    ) -> None:
        super().__init__()
        self.decision = Decision(codebook, loss, decoder, corrections)
        self.head = head
        self._check_head()

    def _check_head(self) -> None:
        outputs = getattr(self.head, "num_bits", getattr(self.head, "out_features", None))
        if outputs is not None and outputs != self.decision.num_outputs:
            raise ConfigurationError(
                f"the head gives {outputs} outputs but the decision layer reads {self.decision.num_outputs}; build the "
                "head with num_bits=codebook.length, inside a ShortlistHead if there is a shortlist"
            )

    def forward(self, hidden: Tensor) -> Tensor:
        """Token logits `(…, V)`; their softmax is the codeword posterior."""
        return self.decision.logits(self.head(hidden))

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Training loss of hidden states `(…, hidden)` for the labels `(…)` that they should predict."""
        return self.decision.loss(self.head(hidden), labels)

    @torch.no_grad()
    def decode(self, hidden: Tensor, k: int = 1, ties: str | int = "lowest") -> Decoded:
        """The `k` nearest tokens of hidden states `(…, hidden)`."""
        return self.decision.decode(self.head(hidden), k, ties)
