"""The size of a decision layer, in separate measures: parameters, bytes stored, bytes resident, bytes read per token.

A checkpoint stores weights, packed codebook, token ids and the weights of a fitted decoder. Decoding by a matrix
product multiplies the bit logits by the codebook unpacked to float32 (and, for a ternary code, by its support): that
matrix is resident, and read for every token, in addition to the weights. Packed codewords need no such matrix: bytes
resident and read are those stored. Softmax (one_vs_all) has no codebook. Notebooks show the size beside Softmax's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from codehead.codes.quality import COLOURS, matplotlib_pyplot, table
from codehead.config.blocks import require
from codehead.errors import ConfigurationError

if TYPE_CHECKING:
    from codehead.config.decision import DecisionConfig


@dataclass(frozen=True)
class ModelShape:
    """The shape of a model's Softmax head `(num_classes, hidden_size)`, and other facts that a new head depends on."""

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
            require(getattr(self, name), f"{name} of the model", minimum=1)

    @classmethod
    def of_config(cls, config: Any) -> ModelShape:
        """The shape that a transformers configuration describes; `tied` is that of the stock model."""
        whole, text = config, config.get_text_config()  # a model that sees images, too, is quantised as a whole
        entry = getattr(whole, "quantization_config", None) or getattr(text, "quantization_config", None) or {}
        entry = entry if isinstance(entry, dict) else entry.to_dict()
        hidden = getattr(text, "word_embed_proj_dim", text.hidden_size)  # OPT-350m projects before its head
        says = (getattr(part, "tie_word_embeddings", None) for part in (whole, text))  # Qwen2.5-VL's text does not
        tied = entry.get("stock", {}).get("tie_word_embeddings", next((tie for tie in says if tie is not None), False))
        return cls(hidden, text.vocab_size, bool(tied), positions_of(config), entry.get("quant_method"))

    @classmethod
    def of_model(cls, model: Any) -> ModelShape:
        """The shape of a transformers model in memory; a ModelShape is returned as it is."""
        if isinstance(model, cls):
            return model
        if not hasattr(model, "config"):
            raise ConfigurationError(
                f"the model is {model!r}; give a transformers model or a ModelShape; codehead.recommend takes names"
            )
        return cls.of_config(model.config)

    @property
    def softmax_weights(self) -> int:
        """H · V: the weights of the Softmax head, and its multiply-adds per token."""
        return self.hidden_size * self.num_classes

    @property
    def softmax_bytes(self) -> int:
        """Bytes of the Softmax head in bf16."""
        return 2 * self.softmax_weights


def positions_of(config: Any) -> int | None:
    """The most tokens that a model with this transformers configuration takes; None if it sets no limit."""
    text = config.get_text_config()
    limits = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))  # the latter: MPT
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


FLOAT_BYTES = 2
"""Bytes of a weight in bf16, the format in which heads are compared; also of the scale of an integer row."""
UNPACKED_BYTES = 4
"""Bytes of a symbol of an unpacked codeword, in float32."""
ID_BYTES = 4
"""Bytes of the id of a token with a dense row."""
INTEGER_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class DecisionSize:
    """The sizes of one decision layer. In a model with tied embeddings the V × H embedding remains as well."""

    head_parameters: int
    """Parameters, including the bias per token."""
    bytes_stored: int
    """Bytes on disk."""
    bytes_resident: int
    """Bytes in memory: those stored, plus the unpacked codeword matrix if there is one."""
    bytes_read_per_token: int
    """Bytes of weights and codeword matrix, at batch size 1."""
    codebook_bytes: int
    """Bytes of the packed codebook, included in bytes_resident."""

    @classmethod
    def of(cls, parameters: int, weights: int, codebook: int, unpacked: int) -> DecisionSize:
        """From the number of parameters, and the bytes of weights, packed codewords and unpacked codewords."""
        return cls(parameters, weights + codebook, weights + codebook + unpacked, weights + unpacked, codebook)

    @property
    def packed(self) -> DecisionSize:
        """The sizes if codewords stay packed."""
        return replace(self, bytes_resident=self.bytes_stored, bytes_read_per_token=self.bytes_stored)

    def as_dict(self) -> dict[str, int]:
        """The sizes as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Matrix:
    """One tensor of weights: `rows` of `width` numbers; a bias is one row.

    The part of a chain in the decision layer counts as a bias: at least 8 bits per number, and no matrix product.
    """

    rows: int
    width: int
    is_bias: bool = False

    def parameters(self, weights: str) -> int:
        """The number of parameters; for integers, including a scale per row."""
        return self.rows * self.width + (self.rows if weights in INTEGER_BITS else 0)

    def stored(self, weights: str) -> int:
        """Its bytes as bf16 ("float"), "int8" or "int4"; a bias never has fewer than 8 bits."""
        if weights not in INTEGER_BITS:
            return FLOAT_BYTES * self.rows * self.width
        bits = 8 if self.is_bias else INTEGER_BITS[weights]
        return self.rows * (-(-self.width * bits // 8) + FLOAT_BYTES)


def packed_row(symbols: int) -> int:
    """Bytes of a row of packed symbols."""
    return -(-symbols // 8)


def layer_size(config: DecisionConfig, matrices: list[Matrix], num_classes: int, bits: int) -> DecisionSize:
    """The sizes of a layer with these matrices and `num_classes` codewords of `bits`."""
    planes = 0 if config.code == "one_vs_all" else 2 if config.is_ternary else 1
    tokens = config.num_extra_bit_tokens
    stored = sum(matrix.stored(config.weights) for matrix in matrices) + ID_BYTES * config.num_dense_rows
    if tokens:
        stored += packed_row(num_classes) + tokens * packed_row(config.extra_bits)
    if config.head == "adaptive":
        stored += ID_BYTES * bits  # the rank of every token
    size = DecisionSize.of(
        sum(matrix.parameters(config.weights) for matrix in matrices),
        stored,
        planes * num_classes * packed_row(bits),
        UNPACKED_BYTES * (planes * num_classes * bits + tokens * config.extra_bits),
    )
    return size.packed if config.packed else size


# Display of a decision layer in notebooks: its fields and its cost.

EXAMPLES = {
    "OPT-1.3B": ModelShape(2048, 50_272),
    "Qwen2.5-0.5B": ModelShape(896, 151_936),
    "Gemma-3-270M": ModelShape(640, 262_144),
}
"""Heads for which the cost is shown when no model is named."""


def html(config: DecisionConfig) -> str:
    """The fields that differ from the defaults, and the cost in some models."""
    prices = {f"in {name}": _price(config, shape) for name, shape in EXAMPLES.items()}
    fields = config.to_dict() or {"code": "the default"}
    return f"<b>{escape(type(config).__name__)}</b>{table(fields)}<b>Price</b>{table(prices)}"


def plot(config: DecisionConfig, shape: ModelShape) -> Any:
    """Plot the layer's bytes beside those of the Softmax head, in bf16 and rounded; returns matplotlib axes."""
    size, dense = config.size(shape), Matrix(shape.num_classes, shape.hidden_size)
    heads = {"Softmax, bf16": shape.softmax_bytes} | {f"Softmax, {name}": dense.stored(name) for name in INTEGER_BITS}
    own = config.short_name(shape)
    axis = matplotlib_pyplot().subplots(figsize=(8, 2.6), layout="constrained")[1]
    axis.barh(list(heads), [count / 1e6 for count in heads.values()], color="#b8b4aa")
    parts = {"weights": size.bytes_stored - size.codebook_bytes, "codewords": size.codebook_bytes}
    left = 0.0
    for (part, count), colour in zip(parts.items(), (COLOURS[1], COLOURS[-1]), strict=True):
        axis.barh([own], [count / 1e6], left=left, color=colour, label=part)
        left += count / 1e6
    axis.text(left, len(heads), f" {size.bytes_stored / shape.softmax_bytes:.1%} of Softmax in bf16", va="center")
    axis.invert_yaxis()
    axis.set(xlabel="megabytes stored", title=f"{config.name(shape.num_classes)}, {_of(shape)}")
    axis.legend(frameon=False, loc="lower right")
    return axis


def _price(config: DecisionConfig, shape: ModelShape) -> str:
    try:
        size = config.size(shape)
    except ConfigurationError as error:
        return str(error)
    return (
        f"{size.bytes_stored:,} bytes, {size.bytes_stored / shape.softmax_bytes:.2%} of Softmax in bf16 ({_of(shape)})"
    )


def _of(shape: ModelShape) -> str:
    return f"H = {shape.hidden_size:,}, V = {shape.num_classes:,}"
