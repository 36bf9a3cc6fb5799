"""A protocol is a committed YAML file: a shared configuration × settings × cells × seeds."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from codehead.codes import DESIGNS
from codehead.decoding import DECODERS
from codehead.errors import ConfigurationError
from codehead.heads import HEADS
from codehead.losses import LOSSES
from codehead.registry import did_you_mean
from codehead.training.blocks import read_block, read_yaml, require_block
from codehead.training.config import WEIGHTS, Distillation, check_weights

VARIABLE = re.compile(r"\$\{(\w+)\}")
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
PAPER_PROTOCOLS = (1, 2, 3, 4)
PREPARED = ("train", "subset", "text_field", "as_text", "max_documents")  # keys of `data` that a split is made from
HALF = "half"  # a width that gives the MTL head half of the Softmax parameters
CONVERTED = ("decision", "distil", *WEIGHTS)  # keys of a run that say what a head is converted to
PARTS = {"code": DESIGNS, "head": HEADS, "loss": LOSSES, "decoder": DECODERS}


@dataclass(frozen=True)
class AnswersConfig:
    """Answers generated to the first prompts of the test split, scored by BERTScore."""

    prompts: int = 128
    new_tokens: int = 64  # at most, per answer
    batch_size: int = 32
    encoder: str = "roberta-large"  # hub id, local folder or `minilm`, see evaluation.encoder
    encoder_layers: int | None = None  # None: the published layer of the encoder
    samples: int = 4  # answers kept as text

    def __post_init__(self) -> None:
        _require_positive(self, "answers.", ("prompts", "new_tokens", "batch_size"))


@dataclass(frozen=True)
class TimingConfig:
    """Time of generating exactly `new_tokens` after each prompt, all cells of the first seed in turns."""

    prompts: int = 32
    prompt_tokens: int = 32  # of a text, where the test split holds no prompts
    new_tokens: int = 32
    batch_size: int = 16
    repeats: int = 5

    def __post_init__(self) -> None:
        _require_positive(self, "timing.", ("prompts", "prompt_tokens", "new_tokens", "batch_size", "repeats"))


@dataclass(frozen=True)
class PeerConfig:
    """What is done to a trained Softmax head: it is quantised, trimmed to the frequent tokens, both, or converted."""

    bits: int | None = None  # per weight
    group: int = 32  # neighbours in a row that share scale and offset
    corrected: bool = False  # spread rounding errors over the columns still to be rounded (GPTQ)
    keep: int | None = None  # the tokens that a trimmed head keeps, the most frequent of the training text
    convert: dict[str, Any] | None = None
    """The `decision`, `distil`, `int8` and `int4` of a run: the head is replaced as by `codehead convert`."""

    def __post_init__(self) -> None:
        if self.convert is not None:
            self._check_conversion()
            return
        if self.bits is None and self.keep is None:
            raise ConfigurationError(
                "a peer has bits, to be quantised, or keep, to be trimmed, or both, or convert: give one"
            )
        given = [name for name in ("bits", "keep") if getattr(self, name) is not None]
        _require_positive(self, "peer.", ("group", *given))
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise ConfigurationError(f"peer.bits is {self.bits!r}; give 2 to 8")

    def _check_conversion(self) -> None:
        require_block(self.convert, "peer.convert")
        assert self.convert is not None
        if self.bits is not None or self.keep is not None:
            raise ConfigurationError("peer.convert replaces the head, so that bits and keep have nothing to compress")
        for key in self.convert:
            if key not in CONVERTED:
                hint = did_you_mean(key, CONVERTED) or f"; known are {', '.join(CONVERTED)}"
                raise ConfigurationError(f"unknown key 'peer.convert.{key}'{hint}")
        if not self.convert.get("decision"):
            raise ConfigurationError("peer.convert has no decision; describe the decision layer that the head becomes")
        check_decision(self.convert["decision"], "peer.convert")
        read_block(Distillation, self.convert.get("distil") or {}, "peer.convert.distil")
        check_weights(self.convert, "peer.convert.")

    def as_dict(self) -> dict[str, Any]:
        """The fields; `convert` if it is set."""
        return {key: value for key, value in asdict(self).items() if key != "convert" or value is not None}


@dataclass(frozen=True)
class Cell:
    """One run of a protocol: one decision layer, one setting, one seed."""

    name: str
    setting: str  # empty if the protocol has none
    seed: int
    config: dict[str, Any]
    """Fields of RunConfig without output_dir; variables are not expanded, `decision.width` may be "half" and
    `model` the name of a backbone."""
    peer: PeerConfig | None = None
    """The cell is the reference's run with its head compressed so; None if it is a run of its own."""

    @property
    def key(self) -> str:
        """The name of the cell, which is also its path: `10M/minimal/seed-0`."""
        return "/".join(part for part in (self.setting, self.name, f"seed-{self.seed}") if part)

    @property
    def backbone(self) -> str | None:
        """Name of the backbone that the cell starts from; None for a model of its own."""
        model = self.config.get("model")
        return model["backbone"] if isinstance(model, dict) and "backbone" in model else None


@dataclass(frozen=True)
class Protocol:
    """What a YAML file of a protocol says. Raises ConfigurationError for anything that cannot run.

    `base`, every setting and every cell are partial RunConfigs, laid over each other in this order. A model
    `{backbone: NAME}` is the one that `backbones` describes: it is trained once, before the cells. A cell `{peer: …}`
    (PeerConfig) trains nothing: it measures the reference's run with a compressed head.
    """

    name: str
    base: dict[str, Any]
    cells: dict[str, dict[str, Any]]
    reference: str  # the cell that shares are taken of, normally the Softmax
    seeds: tuple[int, ...] = (0,)
    settings: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    backbones: dict[str, dict[str, Any]] = field(default_factory=dict)
    split: dict[str, float] | None = None
    """Shares of the documents of `base.data.train` held out as `validation` and `test`."""
    batch_size: int = 32  # examples per forward pass when evaluating
    answers: AnswersConfig | None = None
    timing: TimingConfig | None = None
    decoders: tuple[str, ...] = ()
    """Decoders that every code of independent bits is read with, beside its own; top-1 and top-5 on the test split."""
    paper: int | None = None  # number of the paper's protocol that this one repeats
    description: str = ""

    def __post_init__(self) -> None:
        self._check_shapes()
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "decoders", tuple(self.decoders))
        self._check_names()
        self._check_split()
        self._check_shared()
        self._check_decisions()
        for cell in self.plan():
            check_decision(cell.config.get("decision"), f"cells.{cell.name}")
            self._check_backbone(cell)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Protocol:
        """Read and validate a file."""
        values = read_yaml(Path(path))
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                hint = did_you_mean(str(key), known) or "."
                raise ConfigurationError(f"{str(path)!r}: unknown key {key!r}{hint} Known keys: {', '.join(known)}")
        missing = [key for key in ("name", "base", "cells", "reference") if not values.get(key)]
        if missing:
            raise ConfigurationError(f"{str(path)!r}: missing {', '.join(missing)}")
        for key, kind in (("answers", AnswersConfig), ("timing", TimingConfig)):
            if values.get(key) is not None:
                values[key] = read_block(kind, values[key], key)
        return read_block(cls, values, "")

    def plan(self, only: Iterable[str] = ()) -> list[Cell]:
        """The cells in running order: every cell of one seed before the next seed.

        `only` keeps the cells whose key contains one of the given strings, but not as a part of a longer number:
        `seed-1` does not select `seed-10`.
        """
        wanted = list(only)
        patterns = [_whole_numbers(part) for part in wanted]
        cells = [cell for cell in self._cells() if not wanted or any(one.search(cell.key) for one in patterns)]
        if not cells:
            keys = ", ".join(cell.key for cell in self._cells())
            raise ConfigurationError(f"--only {' '.join(wanted)!r} selects no cell; the cells are {keys}")
        return cells

    def _cells(self) -> Iterator[Cell]:
        for seed in self.seeds:
            for setting, setting_part in self.settings.items():
                for name, cell_part in self.cells.items():
                    peer = self._peer(name)
                    own = cell_part if peer is None else self.cells[self.reference]
                    config = merged(merged(self.base, setting_part), own)
                    config["seed"] = seed
                    if config.get("decision"):
                        config["decision"].setdefault("seed", seed)
                    yield Cell(name, setting, seed, config, peer)

    def _peer(self, name: str) -> PeerConfig | None:
        part = self.cells[name] or {}
        if "peer" not in part:
            return None
        if name == self.reference or set(part) != {"peer"}:
            raise ConfigurationError(
                f"cells.{name} is a peer of {self.reference!r}, of whose run it compresses the head: it can be neither "
                "that cell itself nor have other keys"
            )
        return read_block(PeerConfig, part["peer"], f"cells.{name}.peer")

    def _check_shapes(self) -> None:
        """A YAML file can hold anything in the place of a block or a list."""
        require_block(self.base, "base")
        require_block(self.base.get("data") or {}, "base.data")
        for name in ("settings", "cells", "backbones"):
            require_block(getattr(self, name), name)
            for key, part in getattr(self, name).items():
                require_block(part or {}, f"{name}.{key}")
                require_block((part or {}).get("data") or {}, f"{name}.{key}.data")
        if not isinstance(self.seeds, list | tuple):
            raise ConfigurationError(f"seeds is {self.seeds!r}; give a list, such as [0, 1, 2]")
        if not isinstance(self.decoders, list | tuple):
            raise ConfigurationError(f"decoders is {self.decoders!r}; give a list, such as [likelihood, hamming]")
        for name in self.decoders:
            DECODERS.get(name)
        if not self.settings:
            raise ConfigurationError("settings is empty; name at least one, or remove the key")
        if self.paper not in (None, *PAPER_PROTOCOLS):
            raise ConfigurationError(f"paper is {self.paper!r}; the paper's protocols are 1 to {PAPER_PROTOCOLS[-1]}")
        _require_positive(self, "", ("batch_size",))

    def _check_names(self) -> None:
        if self.reference not in self.cells:
            hint = did_you_mean(str(self.reference), self.cells) or f"; choose one of {', '.join(self.cells)}"
            raise ConfigurationError(f"reference is {self.reference!r}, which is no cell{hint}")
        if not self.seeds or not all(type(seed) is int and seed >= 0 for seed in self.seeds):
            raise ConfigurationError(f"seeds is {list(self.seeds)!r}; give at least one whole number from 0 up")
        named = (self.name, *self.cells, *self.backbones, *(setting for setting in self.settings if setting != ""))
        for name in named:
            if not isinstance(name, str) or not NAME.match(name) or "--" in name:
                raise ConfigurationError(
                    f"{name!r} cannot name a file; use letters, digits, '.', '_' and single '-' (a number in quotes)"
                )

    def _check_shared(self) -> None:
        """The split documents are those of all cells, so none can have others or read them in another way."""
        shared = (*PREPARED, "validation", "test") if self.split is not None else ()
        for name, part in [*self.settings.items(), *self.cells.items()]:
            for key in shared:
                if key in ((part or {}).get("data") or {}):
                    raise ConfigurationError(
                        f"{name} sets data.{key}, which all cells share; set it under base, "
                        "or write a protocol of its own"
                    )

    def _check_decisions(self) -> None:
        """A Softmax must not become coded, nor a backbone, by what is set where nobody looks for it."""
        for name, part in self.backbones.items():
            if (part or {}).get("decision") is not None:
                raise ConfigurationError(
                    f"backbones.{name}.decision is {part['decision']!r}, but a backbone learns with Softmax; remove it"
                )
        for setting, setting_part in self.settings.items():
            shared = merged(self.base, setting_part).get("decision")
            place = f"settings.{setting}" if (setting_part or {}).get("decision") else "base"
            for name, part in self.cells.items():
                if shared and not {"decision", "peer"} & set(part or {}):
                    raise ConfigurationError(
                        f"cell {name!r} names no decision, but {place}.decision is {shared!r}, which would make it a "
                        "coded one; give it `decision: null` for Softmax, or `decision: {}` for what is shared"
                    )

    def _check_split(self) -> None:
        if self.split is None:
            return
        shares = self.split if isinstance(self.split, Mapping) else {}
        if set(shares) != {"validation", "test"} or not all(_is_share(share) for share in shares.values()):
            raise ConfigurationError(
                f"split is {self.split!r}; give validation and test as shares of the documents below 0.5"
            )
        for key in shares:
            if (self.base.get("data") or {}).get(key):
                raise ConfigurationError(
                    f"base.data.{key} is set, but split takes it from base.data.train; remove one of the two"
                )

    def _check_backbone(self, cell: Cell) -> None:
        name = cell.backbone
        if name is not None and name not in self.backbones:
            hint = (
                did_you_mean(str(name), self.backbones) or f"; described are: {', '.join(self.backbones) or '(none)'}"
            )
            raise ConfigurationError(f"cell {cell.key!r} starts from the backbone {name!r}, which is unknown{hint}")


def merged(base: Mapping[str, Any], part: Mapping[str, Any] | None) -> dict[str, Any]:
    """`part` laid over `base`: blocks are merged, everything else is replaced."""
    result = copy.deepcopy(dict(base))
    for key, value in (part or {}).items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            result[key] = merged(old, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def expand(value: Any, variables: Mapping[str, str]) -> Any:
    """Replace `${NAME}` in every string of nested values; ConfigurationError if the variable is not set."""
    if isinstance(value, Mapping):
        return {key: expand(item, variables) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [expand(item, variables) for item in value]
    return VARIABLE.sub(lambda match: _variable(match[1], variables), value) if isinstance(value, str) else value


def half_width(hidden_size: int, num_classes: int, num_bits: int) -> int:
    """The d whose MTL head n·(H·d + d) is as near as can be to half of the Softmax head's V·H parameters."""
    return max(1, round(num_classes * hidden_size / 2 / (num_bits * (hidden_size + 1))))


def check_decision(decision: Mapping[str, Any] | None, place: str) -> None:
    """Raise ConfigurationError for a design, head, loss or decoder that does not exist."""
    if decision is not None and not isinstance(decision, Mapping):
        raise ConfigurationError(f"{place}.decision is {decision!r}; give keywords of attach, or leave it out")
    for key, registry in PARTS.items():
        name = (decision or {}).get(key)
        is_file = key == "code" and isinstance(name, str) and ("/" in name or name.endswith(".safetensors"))
        if name is not None and not is_file:
            registry.get(name)  # type: ignore[attr-defined]


def _whole_numbers(part: str) -> re.Pattern[str]:
    """Finds `part` where it cuts no number in two."""
    before = r"(?<!\d)(?<!\d\.)" if part[:1].isdigit() else ""
    after = r"(?!\.?\d)" if part[-1:].isdigit() else ""
    return re.compile(before + re.escape(part) + after)


def _variable(name: str, variables: Mapping[str, str]) -> str:
    if name not in variables:
        hint = " or give --data-dir" if name == "CODEHEAD_DATA" else ""
        raise ConfigurationError(f"the protocol needs ${{{name}}}, which is not set; export {name}=…{hint}")
    return variables[name]


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 0.5


def _require_positive(block: Any, prefix: str, keys: Iterable[str]) -> None:
    for key in keys:
        if getattr(block, key) < 1:
            raise ConfigurationError(f"{prefix}{key} is {getattr(block, key)!r}; give a whole number of at least 1")
