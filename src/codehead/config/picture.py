"""What a notebook shows of a decision layer's configuration: its fields, and its price."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from codehead.codes.quality import COLOURS, matplotlib_pyplot, table
from codehead.config.size import INTEGER_BITS, Matrix, ModelShape
from codehead.errors import ConfigurationError

if TYPE_CHECKING:
    from codehead.config.decision import DecisionConfig

EXAMPLES = {
    "OPT-1.3B": ModelShape(2048, 50_272),
    "Qwen2.5-0.5B": ModelShape(896, 151_936),
    "Gemma-3-270M": ModelShape(640, 262_144),
}
"""Heads that the price is told for, where no model is named."""


def html(config: DecisionConfig) -> str:
    """The fields that differ from the defaults, and the price in some models."""
    prices = {f"in {name}": _price(config, shape) for name, shape in EXAMPLES.items()}
    fields = config.to_dict() or {"code": "the default"}
    return f"<b>{escape(type(config).__name__)}</b>{table(fields)}<b>Price</b>{table(prices)}"


def plot(config: DecisionConfig, shape: ModelShape) -> Any:
    """Draw the bytes of the layer beside those of the Softmax head, in bf16 and rounded; the axes of matplotlib."""
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
