"""The one description of a decision layer: checked when it is built, read and written by everything else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from codehead.codes import DESIGNS, default_length
from codehead.codes.assignment import check_method
from codehead.config import budget
from codehead.config.blocks import LARGEST, check_keys, require, require_block, require_finite, require_that
from codehead.config.first_version import REMOVED, RENAMED, as_of_today
from codehead.config.size import INTEGER_BITS, DecisionSize, Matrix, ModelShape, html, layer_size, plot
from codehead.errors import ConfigurationError
from codehead.registry import did_you_mean, unknown

WEIGHTS = ("float", *INTEGER_BITS)
STARTS = ("random", "old_head")
LOSSES = ("bitwise", "codeword")
"""Built-in losses. Like other parts' defaults, they are accepted without the registry, which imports torch."""
CODEBOOK_FILE = ".safetensors"

TAKEN = {"code_params": ("num_classes", "bits", "seed"), "head_params": ("hidden_size", "num_bits", "bits", "width")}
"""Arguments of designs and heads that are separate fields of a DecisionConfig."""
DEFAULT_CODE = "minrandom"
"""The code of a training run that names none; enough for a head trained from random weights."""
NEAR_OLD_HEAD = {"code": "additive", "loss": "codeword", "start": "old_head"}
"""Defaults for a layer that replaces a trained head."""
FOUND = ("learned", "custom")
"""Design names of codebooks that no design made: changed by distillation, or replaced."""

DESIGN_NAMES = {
    "minrandom": "MinRandom",
    "itq": "ITQ",
    "one_vs_all": "One-vs-All",
    "one_vs_one": "One-vs-One",
    "decoc": "DECOC",
    "merged_decoc": "Merged DECOC",
    "ecoc_one": "ECOC-ONE",
}


def _option(default: Any, help: str) -> Any:
    """A field with the text that the command's help shows; a `dict` is no part of the hash."""
    how: Any = {"default_factory": dict, "hash": False} if default is dict else {"default": default}
    return field(**how, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class DecisionConfig:
    """A decision layer: code, head, loss, decoder, per-token extras and storage.

    `DecisionConfig(code="minrandom", bits=50)` is the paper's MinRandom ECOC (50, 0);
    `DecisionConfig.for_budget(model, "5%")` is the layer that codehead recommends for 5% of the Softmax head's bytes.

    Raises ConfigurationError, naming the field, its value and the remedy, for an impossible value.
    """

    _given: ClassVar[frozenset[str]] = frozenset()
    """Fields set in a file or command: only a loss set there replaces that of a coded checkpoint, not the default."""
    code: str | None = _option(None, "Design, or file of a saved codebook; training runs use minrandom by default.")
    bits: int | None = _option(None, "Codeword length n; the design's own by default.")
    code_params: Mapping[str, Any] = _option(dict, "An option of the design, or parity; may be repeated.")
    assignment: str | None = _option(None, "How codewords are assigned to tokens; by default, the design decides.")
    head: str = _option("linear", "linear (ECOC), mtl (MTL-ECOC), chain, low_rank or adaptive.")
    width: int | None = _option(None, "Hidden width d of each node of mtl, or of each block of a chain.")
    head_params: Mapping[str, Any] = _option(dict, "An option of the head, such as bias=true; may be repeated.")
    loss: str = _option("bitwise", "bitwise, or codeword (normalised over the codewords).")
    decoder: str = _option("likelihood", "How tokens are ranked: likelihood, hamming, …")
    token_bias: bool = _option(False, "A bias for every token. Needs --loss codeword.")
    dense_rows: int | tuple[int, ...] = _option(0, "How many of the most frequent tokens get a dense row.")
    extra_bits: int = _option(0, "Extra bits in the codewords of frequent tokens.")
    extra_bit_tokens: int | tuple[int, ...] = _option(0, "How many of the most frequent tokens get extra bits.")
    start: str = _option("random", "Initial weights: random, or old_head (close to the Softmax head).")
    weights: str = _option("float", "Final rounding of the weights: float (none), int8 or int4.")
    packed: bool = _option(False, "Keep codewords packed in memory, in 1/32 of the bytes.")
    seed: int = _option(0, "Seed of the codebook and of the head's initial weights.")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if hasattr(value, "tolist"):  # from numpy or torch
                object.__setattr__(self, entry.name, value.tolist())
        for name in ("dense_rows", "extra_bit_tokens"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
                object.__setattr__(self, name, tuple(value))
        for name in ("code_params", "head_params"):
            object.__setattr__(self, name, self._block(name))
        self._check_types()
        self._check_numbers()
        self._check_parts()

    # -- how it is chosen ---------------------------------------------------------------------------------------------

    @classmethod
    def for_budget(cls, model: Any, share: str | float = "5%", **changes: Any) -> DecisionConfig:
        """The layer for a share of the Softmax head's bytes in bf16; `model` is a model, or its ModelShape."""
        return budget.for_share(cls._plan(changes), ModelShape.of_model(model), budget.read_share(share))

    @classmethod
    def for_bits(cls, model: Any, bits: int, **changes: Any) -> DecisionConfig:
        """The layer with this codeword length, and the extras that the matching budget would add."""
        return budget.for_bits(cls._plan(changes), ModelShape.of_model(model), bits)

    @classmethod
    def for_speed(cls, model: Any, times: str | float, **changes: Any) -> DecisionConfig:
        """The largest layer with at most 1 / `times` of the Softmax head's multiply-adds per token."""
        return budget.for_speed(cls._plan(changes), ModelShape.of_model(model), budget.read_speed(times))

    @classmethod
    def _plan(cls, changes: Mapping[str, Any]) -> DecisionConfig:
        return cls.from_fields({**NEAR_OLD_HEAD, "packed": True, **changes})

    # -- how it is read and written -----------------------------------------------------------------------------------

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> DecisionConfig:
        """From keyword arguments; `code` may be a Path.

        ConfigurationError for an unknown name; for one of version 0.1, it gives the current name.
        """
        known = [entry.name for entry in fields(cls)]
        for name in values:
            if name in RENAMED:
                raise ConfigurationError(
                    f"{name} is called {RENAMED[name]} now; write {RENAMED[name]}={values[name]!r}"
                )
            if name in REMOVED:
                raise ConfigurationError(f"{name} was an option of version 0.1 ({REMOVED[name]}); omit it")
            if name not in known:
                hint = did_you_mean(name, known) or f"; known are {', '.join(known)}"
                raise ConfigurationError(f"a decision layer has no field {name!r}{hint}")
        code = values.get("code")
        return cls(**{**values, "code": str(code) if isinstance(code, Path) else code})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], place: str = "decision") -> DecisionConfig:
        """Read a block of a file of this version or 0.1; ConfigurationError names an unknown key or a wrong value."""
        require_block(values, place)
        values = as_of_today(values, place)
        check_keys(values, [entry.name for entry in fields(cls)], place)
        try:
            found = cls(**values)
        except ConfigurationError as error:
            raise ConfigurationError(f"{place}: {error}") from error
        object.__setattr__(found, "_given", frozenset(values))
        return found

    def to_dict(self) -> dict[str, Any]:
        """The fields that were given or differ from their defaults, as plain values; `from_dict` restores them."""
        plain, found = DecisionConfig(), {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in self._given or value != getattr(plain, entry.name):
                found[entry.name] = list(value) if isinstance(value, tuple) else value
        return found

    # -- what it costs ------------------------------------------------------------------------------------------------

    @property
    def is_codebook_file(self) -> bool:
        """Whether `code` is the path of a saved codebook."""
        return self.code is not None and self.code.endswith(CODEBOOK_FILE)

    @property
    def head_options(self) -> dict[str, Any]:
        """The options that the head is built with: its parameters, and the width if there is one."""
        return {**self.head_params, **({} if self.width is None else {"width": self.width})}

    @property
    def parity(self) -> int:
        """Check bits appended to the design's codewords."""
        return int(self.code_params.get("parity", 0))

    @property
    def num_dense_rows(self) -> int:
        """Tokens with a dense row."""
        return _count(self.dense_rows)

    @property
    def num_extra_bit_tokens(self) -> int:
        """Tokens with extra bits."""
        return _count(self.extra_bit_tokens)

    def length(self, num_classes: int) -> int:
        """The codeword length n for `num_classes` tokens, check bits included."""
        if self.code == "one_vs_all":
            return num_classes
        if self.bits is not None:
            return self.bits + self.parity
        if self.is_codebook_file or self.code in FOUND:
            raise ConfigurationError(f"code is {self.code!r}, whose length is known only from the codebook; give bits")
        return default_length(self.code or DEFAULT_CODE, num_classes) + self.parity

    def size(self, shape: ModelShape) -> DecisionSize:
        """Its size in a model of this shape, with packed codewords if `packed` is true."""
        bits = self.length(shape.num_classes)
        return layer_size(self, list(self._matrices(shape, bits)), shape.num_classes, bits)

    def byte_share(self, shape: ModelShape) -> float:
        """Its bytes stored, of the Softmax head's in bf16."""
        return self.size(shape).bytes_stored / shape.softmax_bytes

    def multiply_adds(self, shape: ModelShape) -> int:
        """Per token: head, dense rows, and the products of the bit logits with the codeword matrices.

        Every codeword symbol counts as a multiply-add, as in a matrix product; adding biases is not counted. A
        Softmax head has `hidden · V`.
        """
        bits = self.length(shape.num_classes)
        codewords = 0 if self.code == "one_vs_all" else bits * shape.num_classes
        matrices = [matrix for matrix in self._matrices(shape, bits) if not matrix.is_bias]
        extra = self.extra_bits * self.num_extra_bit_tokens
        return sum(matrix.rows * matrix.width for matrix in matrices) + codewords + extra

    @property
    def is_ternary(self) -> bool:
        """Whether codewords have zeros."""
        return self.code in ("one_vs_one", "sparse_random", "decoc", "forest_ecoc")

    def _matrices(self, shape: ModelShape, bits: int) -> Iterator[Matrix]:
        """The weights of the head and of the per-token extras."""
        hidden, further = shape.hidden_size, self.extra_bits * bool(self.extra_bit_tokens) + self.num_dense_rows
        if self.head == "linear":
            yield Matrix(bits, hidden)
            if self.head_params.get("bias"):
                yield Matrix(1, bits, is_bias=True)
        else:
            from codehead.heads import IN_CHAIN, shapes

            for name, form in shapes(self.head, hidden, bits, **self.head_options).items():
                is_bias = len(form) == 1 or name.endswith("bias") or name.startswith(IN_CHAIN)
                yield Matrix(math.prod(form[:-1]), form[-1], is_bias)  # in integers, the last axis is one row
        if further:
            yield Matrix(further, hidden)
        if self.token_bias:
            yield Matrix(1, shape.num_classes, is_bias=True)

    # -- what it is called --------------------------------------------------------------------------------------------

    def name(self, num_classes: int) -> str:
        """`MinRandom MTL-ECOC (50, 512)`: the paper's notation, extended to codes and heads that it lacks."""
        softmax = {
            "linear": "Softmax",
            "low_rank": f"Low rank {self.head_params.get('rank')}",
            "adaptive": f"Adaptive softmax {self.head_params.get('cutoffs')}",
        }
        if self.code == "one_vs_all" and self.head in softmax:
            return softmax[self.head]
        design = design_name(str(self.code or DEFAULT_CODE))
        kind = {"mtl": "MTL-ECOC", "chain": "chain"}.get(self.head, "ECOC")
        bits = f"{self.length(num_classes) - self.parity} + {self.parity}" if self.parity else self.length(num_classes)
        named = design if "ECOC" in design and kind == "ECOC" else f"{design} {kind}"
        return f"{named} ({bits}, {self.width or 0})"

    def short_name(self, shape: ModelShape) -> str:
        """`code 5%`: what tables and pictures call it."""
        share = 100 * self.byte_share(shape)
        return f"code {share:.2g}%" if share < 9.5 else f"code {share:.0f}%"

    def told(self, shape: ModelShape) -> str:
        """A one-line description: shape, parts and bytes."""
        parts = [f"{self.length(shape.num_classes)} bits"]
        if self.extra_bits:
            parts.append(f"{self.extra_bits} extra bits for the {self.num_extra_bit_tokens:,} most frequent tokens")
        parts += [f"dense rows for {self.num_dense_rows:,}"] if self.dense_rows else []
        parts += ["a bias for every token"] if self.token_bias else []
        stored = self.size(shape).bytes_stored
        made_of = ", ".join([*parts, f"weights in {self.weights}"])
        return (
            f"H = {shape.hidden_size:,}, V = {shape.num_classes:,}: {made_of}. {stored:,} bytes, "
            f"{stored / shape.softmax_bytes:.2%} of the Softmax head's {shape.softmax_bytes:,} in bf16."
        )

    def plot(self, model: Any) -> Any:
        """Plot its bytes beside the Softmax head's in a model or ModelShape; returns matplotlib axes (extra `lab`)."""
        return plot(self, ModelShape.of_model(model))

    def _repr_html_(self) -> str:
        return html(self)

    # -- what it may be -----------------------------------------------------------------------------------------------

    def _check_types(self) -> None:
        for name in ("bits", "width"):
            if getattr(self, name) is not None:
                require(getattr(self, name), name, minimum=1)
        for name in ("extra_bits", "seed"):
            require(getattr(self, name), name, minimum=0)
        for name in ("dense_rows", "extra_bit_tokens"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            are_counts = all(type(number) is int and 0 <= number <= LARGEST for number in numbers)
            require_that(are_counts, name, value, "give a number of tokens, or a list of token ids")
            require_that(len(set(numbers)) == len(numbers), name, value, "give every token id once")
        for name in ("token_bias", "packed"):
            require_that(isinstance(getattr(self, name), bool), name, getattr(self, name), "give true or false")
        for name in ("code", "assignment", "head", "loss", "decoder", "start", "weights"):
            value, optional = getattr(self, name), name in ("code", "assignment")
            is_named = isinstance(value, str) or (optional and value is None)
            require_that(is_named, name, value, f"give a name{', or omit it' if optional else ''}")

    def _block(self, name: str) -> dict[str, Any]:
        values = getattr(self, name)
        values = {} if values is None else values
        is_block = isinstance(values, Mapping) and all(isinstance(key, str) for key in values)
        require_that(is_block, name, values, "give a block of option: value")
        for key, value in values.items():
            if key in TAKEN[name]:
                raise ConfigurationError(f"{name} has {key!r}, which is a field of the decision layer: omit it there")
            require_finite(value, f"{name}.{key}")
        return dict(values)

    def _check_numbers(self) -> None:
        require(self.code_params.get("parity", 0), "code_params.parity", minimum=0)
        require_that(self.seed < 2**32, "seed", self.seed, "give a whole number below 2^32")
        if bool(self.extra_bits) != bool(self.extra_bit_tokens):
            raise ConfigurationError(
                f"extra_bits is {self.extra_bits} and extra_bit_tokens is {self.extra_bit_tokens!r}; give both, or "
                "neither"
            )
        for name, known in (("weights", WEIGHTS), ("start", STARTS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)

    def _check_parts(self) -> None:
        """Names that are not the defaults must be registered."""
        if self.loss not in LOSSES:
            from codehead import losses

            losses.LOSSES.get(self.loss)
        bias = self.head_options.get("bias", False)
        if self.head != "linear" or self.head_options.keys() - {"bias"} or not isinstance(bias, bool):
            from codehead import heads

            try:
                heads.check(self.head, self.head_options)
            except ConfigurationError as error:
                raise ConfigurationError(f"head_params is {self.head_params!r}: {error}") from None
        if self.decoder != "likelihood":
            from codehead.decoding import DECODERS

            DECODERS.get(self.decoder)
        if self.code not in (None, *FOUND) and not self.is_codebook_file:
            DESIGNS.get(self.code)
        if self.assignment is not None:
            check_method(self.assignment)


def design_name(design: str) -> str:
    """A design as tables call it."""
    return DESIGN_NAMES.get(design, design.replace("_", " ").capitalize())


def _count(tokens: int | tuple[int, ...]) -> int:
    return tokens if isinstance(tokens, int) else len(tokens)
