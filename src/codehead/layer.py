"""The decision layer: codebook + head + loss + decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codehead.codes.codebook import Codebook
from codehead.codes.table import CodewordTable
from codehead.decoding import DECODERS, Decoded, FittedDecoder, decode, fit, token_scores
from codehead.decoding.fitted import empty_weights
from codehead.errors import ConfigurationError
from codehead.losses import IGNORE, LOSSES

WEIGHT = "decoder_"
"""Before the names of a decoder's weights in a state dict."""


class Decision(nn.Module):
    """What bit logits mean: their loss, the probability of every token, the nearest tokens.

    Holds the coding matrix and the choice of loss and decoder, no parameters. A decoder that is fitted to predictions
    adds its weights as buffers, which are saved in a checkpoint; they are zeros until `fit_decoder`.
    """

    node_loss: Tensor | None
    """`(n,)`: mean binary cross entropy of every node in the last call of `loss`; None before it or without nodes."""

    def __init__(self, codebook: Codebook | CodewordTable, loss: str = "bitwise", decoder: str = "likelihood") -> None:
        super().__init__()
        LOSSES.get(loss)
        self.table = codebook if isinstance(codebook, CodewordTable) else CodewordTable(codebook)
        self.loss_name = loss
        self._weight_names: tuple[str, ...] = ()
        self.decoder_name = decoder
        self.node_loss = None

    @property
    def decoder_name(self) -> str:
        """The decoder that ranks tokens; another may be set, which forgets weights that it does not share."""
        return self._decoder_name

    @decoder_name.setter
    def decoder_name(self, name: str) -> None:
        decoder = DECODERS.get(name)
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

    def loss(self, bit_logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Scalar loss of bit logits `(…, n)` for labels `(…)` aligned with them; −100 is ignored."""
        loss = LOSSES.get(self.loss_name)(bit_logits, labels, self.table, num_items_in_batch)
        self.node_loss = loss.per_node
        return loss.value

    def logits(self, bit_logits: Tensor) -> Tensor:
        """`(…, n)` → `(…, V)` in float32, whose softmax is the codeword posterior.

        With the one_vs_all code these are the bit logits themselves, untouched and in their own dtype.
        """
        return bit_logits if self.table.is_implicit else token_scores(bit_logits, self.table)

    def decode(self, bit_logits: Tensor, k: int = 1, ties: str | int = "lowest") -> Decoded:
        """The `k` nearest tokens of every position under the chosen decoder."""
        return decode(bit_logits, self.table, decoder=self.decoder_name, k=k, ties=ties, weights=self.decoder_weights)

    def extra_repr(self) -> str:
        return f"loss={self.loss_name!r}, decoder={self.decoder_name!r}"


class DecisionLayer(nn.Module):
    """A drop-in for a Softmax layer in any model: hidden states `(…, hidden)` → token logits `(…, V)`.

    Models of transformers need not be touched by hand: see `codehead.attach`.
    """

    def __init__(self, codebook: Codebook, head: nn.Module, loss: str = "bitwise", decoder: str = "likelihood") -> None:
        super().__init__()
        self.decision = Decision(codebook, loss, decoder)
        self.head = head
        self._check_head()

    def _check_head(self) -> None:
        bits = getattr(self.head, "num_bits", getattr(self.head, "out_features", None))
        if bits is not None and bits != self.decision.table.length:
            raise ConfigurationError(
                f"the head gives {bits} bit logits but the code has length {self.decision.table.length}; "
                "build the head with num_bits=codebook.length"
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
