"""What a decision layer weighs, told in ways that are never mixed: head parameters, bytes stored, bytes resident,
bytes read per token.

Stored is what a checkpoint holds: weights, packed codebook, the ids of a shortlist, the order of the tokens of an
adaptive softmax, what a decoder has learnt.

The others are counted for decoding by a matrix product: it multiplies the bit logits with the codeword matrix unpacked
to float32 (and, for a ternary code, with its support), so that matrix is resident and is read for every token, beside
the weights of the head. The packed codebook is resident; a matrix product does not read it. Where codewords stay packed
(`Decision.packed`) there is no such matrix: resident and read is what is stored. What a fitted decoder has learnt is
resident and read as well. Softmax (one_vs_all) has no codebook and nothing to decode.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from codehead.codes.design import minimal_length
from codehead.codes.packing import row_bytes
from codehead.errors import not_loaded
from codehead.heads import count_buffer_bytes, count_parameters
from codehead.models import is_coded
from codehead.models.rounding import rounded_weights

WEIGHT_BYTES = 2  # bf16
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class DecisionSize:
    """The sizes of one decision layer. In a model with tied embeddings the V × H embedding stays besides."""

    head_parameters: int
    """With the bias per token."""
    bytes_stored: int
    """Weights, packed codebook, ids of tokens, what a decoder has learnt: what the layer takes on disk."""
    bytes_resident: int
    """The same and the unpacked codeword matrix, if there is one."""
    bytes_read_per_token: int
    """Weights and codeword matrix, at batch size 1."""
    codebook_bytes: int
    """The packed codebook, contained in bytes_resident."""

    @property
    def packed(self) -> DecisionSize:
        """The sizes where codewords stay packed."""
        return replace(self, bytes_resident=self.bytes_stored, bytes_read_per_token=self.bytes_stored)

    def as_dict(self) -> dict[str, int]:
        """The sizes as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Configuration:
    """A named decision layer `(n, d)` as the paper writes it."""

    name: str
    bits: int
    width: int = 0
    softmax: bool = False

    @property
    def label(self) -> str:
        """The name as the paper's tables print it."""
        return self.name if self.softmax else f"{self.name} ({self.bits}, {self.width})"


def decision_size(
    hidden_size: int,
    num_classes: int,
    bits: int,
    *,
    head: str = "linear",
    head_options: dict[str, Any] | None = None,
    ternary: bool = False,
    implicit: bool = False,
    weight_bytes: int = WEIGHT_BYTES,
) -> DecisionSize:
    """The sizes from arithmetic alone; `implicit` is the one_vs_all code, which is never written down."""
    options = head_options or {}
    parameters = count_parameters(head, hidden_size, bits, **options)
    order = count_buffer_bytes(head, hidden_size, bits, **options)
    return _size(parameters, num_classes, bits, ternary, implicit, weight_bytes, other_bytes=order)


def model_size(model: nn.Module, *, weight_bytes: int | None = None) -> DecisionSize:
    """The sizes of a model's decision layer, coded or stock; by default with the bytes of its own dtype."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if weight_bytes is None:
        weight_bytes = next(head.parameters()).element_size()
    parameters = sum(p.numel() for p in head.parameters())
    if not is_coded(model):
        return _size(parameters, 0, 0, False, True, weight_bytes)
    decision: Any = model.decision
    code = decision.table
    named = [(n, values) for n, values in decision.named_buffers() if not n.startswith("table.")] + [
        *head.named_buffers()
    ]
    buffers = [values.nbytes for name, values in named if not name.endswith("seal.digest")]  # checksums: not of a size
    size = _size(
        parameters + sum(p.numel() for p in decision.parameters()),
        code.num_classes,
        code.length,
        code.is_ternary,
        code.is_implicit,
        weight_bytes,
        other_bytes=sum(buffers),
    )
    unpacked = _further_symbols(decision) * FLOAT32_BYTES
    size = replace(
        size,
        head_parameters=size.head_parameters + rounded_weights(head) + rounded_weights(decision),
        bytes_resident=size.bytes_resident + unpacked,
        bytes_read_per_token=size.bytes_read_per_token + unpacked,
    )
    return size.packed if decision.packed else size


def _further_symbols(decision: Any) -> int:
    """Symbols that longer codewords have beyond the others."""
    refinement = None if decision.corrections is None else decision.corrections.refinement
    return 0 if refinement is None else refinement.num_tokens * refinement.length


def configuration_size(hidden_size: int, num_classes: int, configuration: Configuration) -> DecisionSize:
    """The sizes of one of the usual configurations."""
    options = {"width": configuration.width} if configuration.width else {}
    return decision_size(
        hidden_size,
        num_classes,
        configuration.bits,
        head="mtl" if configuration.width else "linear",
        head_options=options,
        implicit=configuration.softmax,
    )


@dataclass(frozen=True)
class ModelShape:
    """What the sizes of a model's decision layer depend on."""

    hidden_size: int
    num_classes: int
    tied: bool | None = None  # whether the Softmax head is the input embedding; None if unknown
    positions: int | None = None  # the most tokens that it takes; None if there is no limit
    quantised: str | None = None  # the method by which the checkpoint is quantised, "codehead" for a coded one


def model_shape(name: str) -> ModelShape:
    """The shape of a hub id, a local folder or a `config.json`, without loading weights."""
    from transformers import AutoConfig

    try:
        return config_shape(AutoConfig.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise not_loaded("model", name, error) from error


def config_shape(config: Any) -> ModelShape:
    """The shape that a configuration of transformers describes; tying is that of the stock model."""
    whole, config = config, config.get_text_config()  # of a model that sees images too, the whole one is quantised
    entry = getattr(whole, "quantization_config", None) or getattr(config, "quantization_config", None) or {}
    entry = entry if isinstance(entry, dict) else entry.to_dict()
    stock = entry.get("stock", {})
    hidden = getattr(config, "word_embed_proj_dim", config.hidden_size)  # OPT-350m projects before its head
    tied = bool(stock.get("tie_word_embeddings", config.tie_word_embeddings))
    positions = getattr(config, "max_position_embeddings", None)
    return ModelShape(hidden, config.vocab_size, tied, positions, entry.get("quant_method"))


def compare_configurations(shape: ModelShape) -> list[dict[str, Any]]:
    """One row of sizes per usual configuration, with its share of the parameters of Softmax."""
    rows: list[dict[str, Any]] = []
    softmax = shape.hidden_size * shape.num_classes
    for configuration in usual_configurations(shape.num_classes):
        size = configuration_size(shape.hidden_size, shape.num_classes, configuration)
        share = size.head_parameters / softmax
        rows.append({"configuration": configuration.label, "share_of_softmax": share, **size.as_dict()})
    return rows


def usual_configurations(num_classes: int) -> list[Configuration]:
    """The configurations of the paper (protocol 1 and the length 100 of protocol 3)."""
    minimal = max(1, minimal_length(num_classes))
    return [
        Configuration("Softmax", num_classes, softmax=True),
        Configuration("Minimal ECOC", minimal),
        Configuration("MinRandom ECOC", 50),
        Configuration("MinRandom ECOC", 100),
        Configuration("Minimal MTL-ECOC", minimal, 512),
        Configuration("MinRandom MTL-ECOC", 50, 512),
    ]


def _size(
    parameters: int,
    num_classes: int,
    bits: int,
    ternary: bool,
    implicit: bool,
    weight_bytes: int,
    other_bytes: int = 0,
) -> DecisionSize:
    planes = 0 if implicit else 2 if ternary else 1
    packed = planes * num_classes * row_bytes(bits)
    unpacked = planes * num_classes * bits * FLOAT32_BYTES
    weights = parameters * weight_bytes + other_bytes
    return DecisionSize(parameters, weights + packed, weights + packed + unpacked, weights + unpacked, packed)
