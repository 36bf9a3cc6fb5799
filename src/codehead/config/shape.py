"""What the price of a decision layer depends on in a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from codehead.errors import ConfigurationError


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model's Softmax head `(num_classes, hidden_size)`, and what else decides on a new one."""

    hidden_size: int
    """H, the width of a hidden state."""
    num_classes: int
    """V, the rows of the head: tokens, padding of the vocabulary included."""
    tied: bool | None = None
    """Whether the head is the input embedding; None if unknown."""
    positions: int | None = None
    """The most tokens that the model takes; None if there is no limit."""
    quantised: str | None = None
    """The method by which the checkpoint is quantised, "codehead" for a coded one."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_classes"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} of the model is {getattr(self, name)!r}; give at least 1")

    @classmethod
    def of_config(cls, config: Any) -> ModelShape:
        """The shape that a configuration of transformers describes; tying is that of the stock model."""
        whole, text = config, config.get_text_config()  # of a model that sees images too, the whole one is quantised
        entry = getattr(whole, "quantization_config", None) or getattr(text, "quantization_config", None) or {}
        entry = entry if isinstance(entry, dict) else entry.to_dict()
        hidden = getattr(text, "word_embed_proj_dim", text.hidden_size)  # OPT-350m projects before its head
        tied = bool(entry.get("stock", {}).get("tie_word_embeddings", text.tie_word_embeddings))
        positions = getattr(text, "max_position_embeddings", None)
        return cls(hidden, text.vocab_size, tied, positions, entry.get("quant_method"))

    @classmethod
    def of_model(cls, model: Any) -> ModelShape:
        """The shape of a model of transformers that is in memory."""
        return cls.of_config(model.config)

    @property
    def softmax_weights(self) -> int:
        """H · V: the weights of the Softmax head, and its multiply-adds per token."""
        return self.hidden_size * self.num_classes

    @property
    def softmax_bytes(self) -> int:
        """What the Softmax head takes in bf16."""
        return 2 * self.softmax_weights
