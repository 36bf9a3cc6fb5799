"""Weights of a decision layer as integers with a scale per row: 8 bits, half of bf16's bytes, or 4 bits, a quarter.

The integers are dequantised whenever they are used, so that every part of a decision layer works as before; they cannot
be trained, but their scales can.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from codehead.codes.table import Seal
from codehead.errors import ConfigurationError
from codehead.models.guards import all_or_nothing
from codehead.models.surgery import Model, describe

DAMPING = 0.01
"""Added to the diagonal of the second moments, relative to its mean, as GPTQ does."""
BLOCK = 128
"""Columns whose errors are passed on to later columns together."""
ROWS = 2**12
"""Rows rounded at a time: rounding takes a multiple of their bytes."""

Rounding = Callable[[Tensor], Tensor]


def error_corrected(weight: Tensor, spread: Tensor, group: int, rounding: Callable[[Tensor], Rounding]) -> Tensor:
    """A weight `(rows, hidden)` rounded column by column; columns not yet rounded compensate for each column's error.

    `spread` is that of `error_spread` (E. Frantar et al. 2022, "GPTQ", https://arxiv.org/abs/2210.17323). From the next
    `group` columns, corrected for the errors so far, `rounding` makes the function that rounds one of them. float32, on
    the CPU. Rows are independent: give a few thousand rows of a large weight at a time.
    """
    left, hidden = weight.to("cpu", torch.float64, copy=True), weight.shape[1]
    for first in range(0, hidden, group):
        last = min(first + group, hidden)
        nearest = rounding(left[:, first:last].float())
        for start in range(first, last, BLOCK):
            block = slice(start, min(start + BLOCK, last))
            errors = _round_block(left[:, block], spread[block, block], nearest)
            left[:, block.stop :] -= errors @ spread[block, block.stop :]
    return left.float()


def error_spread(moments: Tensor) -> Tensor:
    """How errors reach later columns: the upper Cholesky factor of the inverse of the moments `(hidden, hidden)`.

    They are the second moments of the hidden states. float64, on the CPU.
    """
    damped = moments.to("cpu", torch.float64, copy=True)
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    return torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)


def _round_block(left: Tensor, spread: Tensor, nearest: Rounding) -> Tensor:
    """Round some columns in place, each corrected for the errors before it; their errors `(rows, columns)`."""
    errors = torch.empty_like(left)
    for column in range(left.shape[1]):
        rounded = nearest(left[:, column : column + 1].float()).double()
        errors[:, column : column + 1] = (left[:, column : column + 1] - rounded) / spread[column, column]
        left[:, column + 1 :] -= errors[:, column : column + 1] * spread[column, column + 1 :]
        left[:, column : column + 1] = rounded
    return errors


INT8, INT4 = 8, 4
LARGEST = 127
LARGEST_NIBBLE = 7
POSITIONS = 512
"""Hidden states run through a head at a time: some heads have V-wide outputs."""
SHARES = [percent / 100 for percent in range(50, 101, 2)]
"""Shares of a row's largest magnitude that its largest integer may stand for."""


@all_or_nothing
@torch.no_grad()
def to_int8(model: Model) -> Model:
    """Round the weights of a coded model's head, dense rows and bias per token to int8, in place.

    Every row (everything along the last axis) gets one scale, the largest magnitude over 127; a bias is one row.
    ConfigurationError if the model has no decision layer or is already rounded.
    """
    _check(model)
    return _round(model, INT8, {})


@all_or_nothing
@torch.no_grad()
def to_int4(model: Model, hidden: Tensor | None = None) -> Model:
    """Round the matrices of a coded model's head and dense rows to int4, and biases to int8, in place.

    Every row gets the scale with the smallest error. `hidden` `(tokens, hidden)` are the inputs of the head at a few
    thousand positions of text like yours (`codehead.models.hidden.hidden_states`): later columns then compensate for
    the error of each column (`error_corrected`). Without `hidden`, each weight is rounded to the nearest, which loses
    more. Weights that a head does not apply as one linear map (the last layer of "mtl") are rounded so too, with a
    warning. The rounding errors of bits add up: for codewords much longer than the hidden size use `to_int8`.

    ConfigurationError if the model has no decision layer or is already rounded, or `hidden` does not fit.
    """
    _check(model)
    head = model.get_output_embeddings()  # type: ignore[operator]
    moments = {} if hidden is None else input_moments(head, _checked(hidden, head))
    unseen = [
        name for name, weight in head.named_parameters() if _is_matrix(name, weight) and _key(weight) not in moments
    ]
    if hidden is not None and unseen:
        warnings.warn(
            f"the head does not apply {', '.join(unseen)} as one linear map: rounded to the nearest", stacklevel=2
        )
    return _round(model, INT4, moments)


def check_unrounded(model: Any) -> None:
    """Raise ConfigurationError unless a model is coded and the weights of its decision layer are not yet integers."""
    description = describe(model, "round")
    if description.decision.weights != "float":
        raise ConfigurationError(
            f"the weights of this decision layer are {description.decision.weights} already; omit weights, or give the "
            "checkpoint before rounding"
        )


def round_parts(
    head: nn.Module, decision: nn.Module, bits: int, moments: Mapping[tuple[int, int], Tensor] | None = None
) -> None:
    """Replace all weights of a head and of a decision by integers; `moments` as from `input_moments`."""
    for module, name in _weights(head):
        weight = module.get_parameter(name)
        form = _Nibbles if bits == INT4 and _is_matrix(name, weight) else _Bytes
        _put(module, name, form(weight.shape[-1], (moments or {}).get(_key(weight))))
    for module, name in _weights(decision):
        _put(module, name, _Bytes(module.get_parameter(name).shape[-1]))


def input_moments(head: nn.Module, hidden: Tensor) -> dict[tuple[int, int], Tensor]:
    """The second moments, on the CPU, of the inputs of each weight of a head at hidden states `(tokens, H)`.

    Keyed by address and size of the weight, for weights that are applied as one linear map. Weights whose inputs are
    all zeros have none. ConfigurationError if inputs are not finite.
    """
    with _Inputs() as inputs:
        for some in hidden.split(POSITIONS):
            head(some)
    if not all(total.isfinite().all() for total in inputs.totals.values()):
        raise ConfigurationError("hidden makes values within the head that are not finite; give a model in bfloat16")
    return {key: total / len(hidden) for key, total in inputs.totals.items() if total.any()}


def rounded_weights(module: nn.Module) -> int:
    """How many weights of a module and its submodules are integers."""
    lists: list[Any] = [part for part in module.modules() if isinstance(part, parametrize.ParametrizationList)]
    return sum(part.original1.numel() * part[0].width for part in lists if isinstance(part[0], _Bytes))


def _check(model: Any) -> None:
    """Raise ConfigurationError unless the weights of a coded model's decision layer are loaded and not yet integers."""
    check_unrounded(model)
    if any(values.is_meta for part in (model.get_output_embeddings(), model.decision) for values in part.parameters()):
        raise ConfigurationError("weights that are offloaded cannot be rounded; load the model without a device_map")


def _round(model: Any, bits: int, moments: Mapping[tuple[int, int], Tensor]) -> Any:
    round_parts(model.get_output_embeddings(), model.decision, bits, moments)
    model.config.quantization_config = describe(model, "round").rounded(f"int{bits}").to_dict()
    return model


def _put(module: nn.Module, name: str, form: _Bytes) -> None:
    """Replace one weight by integers."""
    weight = module.get_parameter(name)
    trained = weight.requires_grad
    weight.requires_grad_(False)  # integers have no gradient
    parametrize.register_parametrization(module, name, form, unsafe=True)
    form.moments = None  # no longer needed
    parts: Any = module.parametrizations[name]  # type: ignore[index]
    integers = parts.original0.data
    del parts.original0  # as a parameter, its dtype would pass for that of the head
    parts.register_buffer("original0", integers)
    form.seal.close({"original0": integers})
    parts.original1.requires_grad_(trained)


def _checked(hidden: Tensor, head: Any) -> Tensor:
    """Hidden states as a head takes them; ConfigurationError if they do not fit it."""
    width = head.weight.shape[-1]
    if hidden.ndim != 2 or hidden.shape[1] != width:
        raise ConfigurationError(
            f"hidden has shape {tuple(hidden.shape)}; give (tokens, {width}), the inputs of the head"
        )
    if not hidden.isfinite().all() or not hidden.any():
        raise ConfigurationError("hidden holds NaN or infinite values, or only zeros; give hidden states of a text")
    return hidden.to(head.weight)


def _is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a weight is not a bias; biases of several towers or nodes have two dimensions, too."""
    return weight.ndim > 1 and not name.endswith("bias")


def _key(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight.numel()


class _Inputs(TorchFunctionMode):
    """Adds up the second moments of the inputs of linear maps, by `_key` of their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.totals: dict[tuple[int, int], Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            given, key = args[0].flatten(0, -2).float(), _key(args[1])
            self.totals[key] = self.totals.get(key, 0.0) + (given.T @ given).cpu()
        return func(*args, **(kwargs or {}))


def _weights(root: nn.Module) -> list[tuple[nn.Module, str]]:
    """The modules that hold weights, and the names of the weights in them."""
    parts = [(module, *entry) for module in root.modules() for entry in module.named_parameters(recurse=False)]
    return [(module, name) for module, name, weight in parts if weight.numel()]


class _Bytes(nn.Module):
    """Integers `(…, width)` and the scale of each row ↔ the weights that they represent."""

    def __init__(self, width: int, moments: Tensor | None = None) -> None:
        super().__init__()
        self.width = width
        self.moments = moments
        self.seal = Seal()

    def forward(self, integers: Tensor, scale: Tensor) -> Tensor:
        self.seal.check({"original0": integers})
        return integers.to(scale.dtype).mul_(scale)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, nn.Parameter]:
        scale = _positive(weight.abs().amax(-1, keepdim=True) / LARGEST)
        integers = (weight.float() / scale.float()).round().clamp(-LARGEST, LARGEST).to(torch.int8)
        return integers, nn.Parameter(scale)


class _Nibbles(_Bytes):
    """The same with two integers of 4 bits to a byte, `(…, ⌈width / 2⌉)`, the first one in its lower half."""

    def forward(self, packed: Tensor, scale: Tensor) -> Tensor:
        self.seal.check({"original0": packed})
        integers = scale.new_empty(*packed.shape[:-1], self.width)  # filled in place: stack takes three times as long
        integers[..., ::2] = packed & 15
        integers[..., 1::2] = packed[..., : self.width // 2] >> 4
        return integers.sub_(LARGEST_NIBBLE + 1).mul_(scale)  # in place: new memory costs more than the arithmetic

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, nn.Parameter]:
        if weight.is_meta:  # to be loaded: only shapes matter
            half = torch.empty_like(weight[..., : (self.width + 1) // 2], dtype=torch.uint8)
            return half, nn.Parameter(torch.empty_like(weight[..., :1]))
        spread = None if self.moments is None else error_spread(self.moments)
        parts = [self._packed(rows, spread) for rows in weight.flatten(0, -2).split(ROWS)]
        packed, scale = (torch.cat(part).unflatten(0, weight.shape[:-1]) for part in zip(*parts, strict=True))
        return packed, nn.Parameter(scale)

    def _packed(self, rows: Tensor, spread: Tensor | None) -> tuple[Tensor, Tensor]:
        """Some rows `(rows, width)` as bytes, and their scales `(rows, 1)`."""
        scale = _least_squares_scale(rows)
        values, step = rows.float(), scale.float()
        if spread is not None:
            on_cpu = step.cpu()
            nearest = error_corrected(rows, spread, self.width, lambda _: lambda some: _integers(some, on_cpu) * on_cpu)
            values = nearest.to(rows.device)
        filled = F.pad(_integers(values, step) + LARGEST_NIBBLE + 1, (0, self.width % 2)).to(torch.uint8)
        return filled[:, ::2] | filled[:, 1::2] << 4, scale


def _integers(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight / scale).round().clamp(-LARGEST_NIBBLE - 1, LARGEST_NIBBLE)


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, torch.ones_like(scale))  # a row of zeros


def _least_squares_scale(weight: Tensor) -> Tensor:
    """For each row `(rows, 1)`, the scale among several with the least error when it is rounded to int4."""
    values, largest = weight.float(), weight.abs().amax(-1, keepdim=True) / LARGEST_NIBBLE
    best, least = largest, torch.full_like(largest, torch.inf, dtype=torch.float32)
    for share in SHARES:
        scale = _positive(largest * share)
        error = (_integers(values, scale.float()) * scale.float() - values).square().sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best
