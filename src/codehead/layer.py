"""The decision layer: codebook + head + loss + decoder."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from codehead.codes.codebook import Codebook
from codehead.codes.table import CodewordTable, Seal
from codehead.decoding import DECODERS, Decoded, FittedDecoder, fit
from codehead.decoding.decoders import empty_weights
from codehead.decoding.extras import Corrections
from codehead.decoding.scan import Choice, choose
from codehead.errors import ConfigurationError
from codehead.head_outputs import ChainedBits, CorrectedBits, HeadOutputs, Tokens
from codehead.heads.chain import Chain
from codehead.heads.feedforward import gives_log_probabilities
from codehead.losses import IGNORE, LOSSES

WEIGHT = "decoder_"
"""Prefix of the names of a decoder's weights in a state dict."""
TRAINED = re.compile(r"modules_to_save\.[^.]+\.")
"""Part of the names in PEFT's trainable copy of a module, which replaces the module."""
ELSEWHERE = ("parametrizations.", "original_module.")
"""Parts of the names of integers that are rounded weights, or in a module that PEFT trains a copy of."""
WRITTEN = "description"
"""A tensor in checkpoints that is not in the decision layer: a copy of its entry in the configuration."""


class Decision(nn.Module):
    """Interprets the outputs of a head: their loss, the probability of every token, the nearest tokens.

    Holds the coding matrix and the choice of loss and decoder; its only parameters are those of `corrections` or a
    `chain`. A decoder that is fitted to predictions adds its weights as buffers, which checkpoints save; they are zeros
    until `fit_decoder`.

    The outputs are n bit logits, followed with `corrections` by those of extra bits and K logits of dense rows; or the
    features of a `chain`; or `log_probabilities` of tokens: see `codehead.head_outputs`.

    Codewords and token ids are integers protected by a checksum, the module `seal`. Everything that reads outputs
    raises a CheckpointError if they do not match it.
    """

    seal: Seal | None
    """None if there are no such integers."""
    node_loss: Tensor | None
    """`(n,)`: mean binary cross entropy of every node in the last call of `loss`; None before it or without nodes."""

    def __init__(
        self,
        codebook: Codebook | CodewordTable,
        loss: str = "bitwise",
        decoder: str = "likelihood",
        corrections: Corrections | None = None,
        chain: Chain | None = None,
        log_probabilities: bool = False,
    ) -> None:
        super().__init__()
        self.table = codebook if isinstance(codebook, CodewordTable) else CodewordTable(codebook)
        self.corrections = corrections
        self.chain = chain
        self.log_probabilities = log_probabilities
        if corrections is not None and (chain is not None or log_probabilities):
            raise ConfigurationError(
                "the probabilities of this head sum to 1 already, so it cannot take dense rows or a bias per token; "
                "omit dense_rows and token_bias"
            )
        self.outputs.check()
        self.loss_name = loss
        self._weight_names: tuple[str, ...] = ()
        self.decoder_name = decoder
        self.node_loss = None
        self.seal = Seal() if self.integers() else None
        self.reseal()

    @property
    def outputs(self) -> HeadOutputs:
        """How the outputs of the head are read."""
        if self.chain is not None:
            return ChainedBits(self.table, self.chain)
        if self.corrections is not None:
            return CorrectedBits(self.table, self.corrections)
        if self.log_probabilities:
            return Tokens(self.table)
        return HeadOutputs(self.table)

    def _checked_outputs(self) -> HeadOutputs:
        self.check_integers()
        return self.outputs

    def check_integers(self) -> None:
        """Raise a CheckpointError if codewords or token ids were corrupted: averaged, or edited in place.

        Those that `load_state_dict` takes from another decision layer pass, since they come with their checksum.
        """
        if self.seal is not None and not torch.compiler.is_compiling():
            self.seal.check(self.integers(), "decision.")

    def reseal(self) -> None:
        """Accept codewords and token ids as they are now, after an intended change."""
        if self.seal is not None:
            self.seal.close(self.integers())

    def replace_codebook(self, codebook: Codebook) -> None:
        """Replace the codewords by others of the same shape and kind; the head should then be trained for them.

        ConfigurationError if their number, length or kind differs.
        """
        table = CodewordTable(codebook)
        for name in ("num_classes", "length", "is_ternary", "is_implicit"):
            if getattr(table, name) != getattr(self.table, name):
                raise ConfigurationError(
                    f"{name} of the new codebook is {getattr(table, name)}, of this decision layer "
                    f"{getattr(self.table, name)}; attach to a stock model instead"
                )
        self.check_integers()
        table.packed = self.packed
        self.table = table if self.table.sign_plane is None else table.to(self.table.sign_plane.device)
        self.reseal()

    def integers(self) -> dict[str, Tensor]:
        """Codewords and token ids by name; weights in int8 or int4 have separate checksums."""
        return {
            TRAINED.sub("", name): values
            for name, values in self.named_buffers()
            if not name.startswith((WEIGHT, "seal.")) and not any(part in name for part in ELSEWHERE)
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.pop(f"{prefix}{WRITTEN}", None)  # from a checkpoint, whose loader has already read it
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def num_outputs(self) -> int:
        """The number of outputs that the head must have."""
        return self.outputs.num_outputs

    @property
    def loss_name(self) -> str:
        """The loss; can be set."""
        return self._loss_name

    @loss_name.setter
    def loss_name(self, name: str) -> None:
        LOSSES.get(name)
        self.outputs.check_loss(name)
        self._loss_name = name

    @property
    def decoder_name(self) -> str:
        """The decoder that ranks tokens; can be set, which drops fitted weights that the new decoder does not share."""
        return self._decoder_name

    @decoder_name.setter
    def decoder_name(self, name: str) -> None:
        decoder = DECODERS.get(name)
        self.outputs.check_decoder(name)
        if self.packed:
            self._refuse_packed(name)
        shapes = decoder.shapes(self.table) if isinstance(decoder, FittedDecoder) else {}
        if tuple(shapes) != self._weight_names:
            for old in self._weight_names:
                delattr(self, WEIGHT + old)
            for new, values in empty_weights(shapes, self.table).items():
                self.register_buffer(WEIGHT + new, values)
            self._weight_names = tuple(shapes)
        self._decoder_name = name

    @property
    def packed(self) -> bool:
        """Whether codewords stay packed when tokens are scored, in 1/32 of the memory.

        False by default; checkpoints save it. Where a gradient may be needed, codewords are unpacked temporarily.
        Setting it to True raises a ConfigurationError if there are no codewords (one_vs_all), or if a chain or the
        decoder inverse_hamming needs them unpacked.
        """
        return self.table.packed

    @packed.setter
    def packed(self, packed: bool) -> None:
        if packed:
            self.check_packable()
        for module in self.modules():
            if isinstance(module, CodewordTable):
                module.packed = packed
                module.reset_cache()

    def check_packable(self) -> None:
        """Raise a ConfigurationError if codewords cannot stay packed."""
        self._refuse_packed(self.decoder_name)

    def _refuse_packed(self, decoder: str) -> None:
        if self.table.is_implicit:
            raise ConfigurationError("the code one_vs_all has no codewords that could stay packed; omit packed")
        if self.chain is not None or decoder == "inverse_hamming":
            what = "a chain" if self.chain is not None else "decoder 'inverse_hamming'"
            raise ConfigurationError(f"{what} needs the codewords unpacked; omit packed, or choose another")

    @property
    def decoder_weights(self) -> dict[str, Tensor] | None:
        """The weights that `fit_decoder` has fitted, zeros before; None if the decoder has no weights."""
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
        """The bit logits `(…, n)` among the outputs of a head; a ConfigurationError where they depend on the token."""
        return self._checked_outputs().bit_logits(outputs)

    def nodes(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The binary problems of outputs `(…, num_outputs)` with known labels `(…)`, each 0 … V − 1.

        Returns bit logits and their target symbols, both `(…, n)`; a symbol of 0 means no target. In a chain, each bit
        logit is conditioned on the true bits before it.
        """
        return self._checked_outputs().nodes(outputs, labels)

    def loss(self, outputs: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Scalar loss of outputs `(…, num_outputs)` for labels `(…)` aligned with them; −100 is ignored."""
        loss = self._checked_outputs().loss(self.loss_name, outputs, labels, num_items_in_batch)
        self.node_loss = loss.per_node
        return loss.value

    def token_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Bitwise losses `(tokens,)` of outputs `(tokens, num_outputs)` for their labels; `loss` is their mean."""
        loss = self._checked_outputs().loss("bitwise", outputs, labels, None)
        self.node_loss = loss.per_node
        assert loss.per_token is not None
        return loss.per_token

    def logits(self, outputs: Tensor) -> Tensor:
        """`(…, num_outputs)` → `(…, V)` in float32, whose softmax is the codeword posterior.

        With the one_vs_all code these are the outputs themselves, untouched and in their own dtype; with a chain they
        are log-probabilities.
        """
        return self._checked_outputs().scores(outputs)

    def decode(self, outputs: Tensor, k: int = 1, ties: str | int = "lowest") -> Decoded:
        """The `k` nearest tokens of every position under the chosen decoder."""
        return self._checked_outputs().decode(outputs, k, ties, self.decoder_name, self.decoder_weights)

    def best(self, outputs: Tensor, k: int) -> Decoded:
        """The `k` most probable tokens of every position, and their `logits`."""
        return self.outputs.decode(outputs, k, "lowest", "likelihood", None)

    def choice(self, k: int = 1, positions: int = 1) -> Choice:
        """How the `k` most probable tokens of this many positions are found, and why."""
        if self.chain is not None:
            return Choice("plain", "a chain searches the tree of its codewords")
        return choose("auto", self.table, "likelihood", self.corrections, k=k, size=positions)

    def extra_repr(self) -> str:
        choice = self.choice()
        return f"loss={self.loss_name!r}, decoder={self.decoder_name!r}, decoding={choice.impl!r} ({choice.why})"


class DecisionLayer(nn.Module):
    """A drop-in for a Softmax layer in any model: hidden states `(…, hidden)` → token logits `(…, V)`.

    For models of transformers, `codehead.attach` does this for you.
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
        chain, log_probabilities = Chain.of(head), gives_log_probabilities(head)
        self.decision = Decision(codebook, loss, decoder, corrections, chain, log_probabilities)
        self.head = head
        outputs = getattr(head, "out_features", getattr(head, "num_bits", None))
        if outputs is not None and outputs != self.decision.num_outputs:
            raise ConfigurationError(
                f"the head gives {outputs} outputs but the decision layer reads {self.decision.num_outputs}; build the "
                "head with num_bits=codebook.length, inside an ExtendedHead if there are dense rows"
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
