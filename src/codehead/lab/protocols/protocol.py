"""A protocol is a committed YAML file: a shared configuration × settings × cells × seeds."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from codehead.config.blocks import check_keys, read_block, read_yaml, require, require_block
from codehead.decoding import DECODERS
from codehead.errors import ConfigurationError
from codehead.lab.baselines import FILE_KEY, BaselineConfig, check_decision
from codehead.registry import did_you_mean

VARIABLE = re.compile(r"\$\{(\w+)\}")
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
PAPER_PROTOCOLS = (1, 2, 3, 4)
PREPARED = ("train", "subset", "text_field", "as_text", "max_documents")  # keys of `data` that define a split
BLOCKS = ("data", "decision", "distil", "calibrate", "lora", "training")  # keys of a run whose values are merged
BASELINE = ("baseline", FILE_KEY)  # the key of a cell that measures a baseline, and its older name


@dataclass(frozen=True)
class AnswersConfig:
    """Answers generated to the first prompts of the test split, scored by BERTScore."""

    prompts: int = 128
    new_tokens: int = 64  # at most, per answer
    batch_size: int = 32
    encoder: str | None = "roberta-large"  # hub id, local folder or `minilm`, see answers.encoder; None: no scores
    encoder_layers: int | None = None  # None: the published layer of the encoder
    samples: int = 4  # answers kept as text

    def __post_init__(self) -> None:
        for name in ("prompts", "new_tokens", "batch_size"):
            require(getattr(self, name), f"answers.{name}", minimum=1)


@dataclass(frozen=True)
class TimingConfig:
    """Time of generating exactly `new_tokens` after each prompt, all cells of the first seed in turns."""

    prompts: int = 32
    prompt_tokens: int = 32  # used for plain text, where the test split has no prompts
    new_tokens: int = 32
    batch_size: int = 16
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("prompts", "prompt_tokens", "new_tokens", "batch_size", "repeats"):
            require(getattr(self, name), f"timing.{name}", minimum=1)


@dataclass(frozen=True)
class Entry:
    """One run as the file describes it: one decision layer, one setting, one seed."""

    name: str
    setting: str  # empty if the protocol has none
    seed: int
    config: dict[str, Any]
    """Fields of RunConfig without output_dir; variables are not expanded, `decision.width` may be "half" and
    `model` the name of a backbone."""
    baseline: BaselineConfig | None = None
    """How the cell compresses the head of the reference's run; None if it is a separate run."""

    @property
    def key(self) -> str:
        """The name of the cell, which is also its path: `10M/minimal/seed-0`."""
        return "/".join(part for part in (self.setting, self.name, f"seed-{self.seed}") if part)

    @property
    def backbone(self) -> str | None:
        """Name of the backbone that the cell starts from; None if it has its own model."""
        model = self.config.get("model")
        return model.get("backbone") if isinstance(model, dict) else None


@dataclass(frozen=True)
class Protocol:
    """The content of a protocol's YAML file. Raises ConfigurationError for anything that cannot run.

    `base`, every setting and every cell are partial RunConfigs, merged in this order. A model `{backbone: NAME}` is
    described under `backbones`: it is trained once, before the cells. A cell
    `{baseline: …}` (BaselineConfig) trains nothing: it measures the reference's run with a compressed head.
    """

    name: str
    base: dict[str, Any]
    cells: dict[str, dict[str, Any]]
    reference: str  # the cell that counts as 100% in shares, normally Softmax
    seeds: tuple[int, ...] = (0,)
    settings: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    backbones: dict[str, dict[str, Any]] = field(default_factory=dict)
    split: dict[str, float] | None = None
    """Shares of the documents of `base.data.train` held out as `validation` and `test`."""
    batch_size: int = 32  # examples per forward pass when evaluating
    answers: AnswersConfig | None = None
    timing: TimingConfig | None = None
    decoders: tuple[str, ...] = ()
    """Decoders tried on every code of independent bits, besides its own; top-1 and top-5 on the test split."""
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
        for entry in self.entries:
            check_decision(entry.config.get("decision"), f"cells.{entry.name}")
            self._check_backbone(entry)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Protocol:
        """Read and validate a file."""
        values = read_yaml(Path(path))
        check_keys(values, [f.name for f in fields(cls)], "")
        missing = [key for key in ("name", "base", "cells", "reference") if not values.get(key)]
        if missing:
            raise ConfigurationError(f"{str(path)!r}: missing {', '.join(missing)}")
        for key, kind in (("answers", AnswersConfig), ("timing", TimingConfig)):
            if values.get(key) is not None:
                values[key] = read_block(kind, values[key], key)
        return read_block(cls, values, "")

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The cells in running order: every cell of one seed before the next seed."""
        return tuple(self._entries())

    def plan(self, only: Iterable[str] = ()) -> list[Entry]:
        """The entries, or those whose key contains one of the given strings, but not within a longer number:
        `seed-1` does not select `seed-10`.
        """
        wanted = list(only)
        patterns = [_whole_numbers(part) for part in wanted]
        chosen = [entry for entry in self.entries if not wanted or any(one.search(entry.key) for one in patterns)]
        if not chosen:
            keys = ", ".join(entry.key for entry in self.entries)
            raise ConfigurationError(f"--only {' '.join(wanted)!r} selects no cell; the cells are {keys}")
        return chosen

    def _entries(self) -> Iterator[Entry]:
        baselines = {name: self._baseline(name) for name in self.cells}
        for seed in self.seeds:
            for setting, setting_part in self.settings.items():
                for name, baseline in baselines.items():
                    own = self.cells[name if baseline is None else self.reference]
                    config = merged(merged(self.base, setting_part), own)
                    config["seed"] = seed
                    if config.get("decision") is not None:
                        config["decision"].setdefault("seed", seed)
                    yield Entry(name, setting, seed, config, baseline)

    def _baseline(self, name: str) -> BaselineConfig | None:
        part = self.cells[name] or {}
        keys = [key for key in BASELINE if key in part]
        if not keys:
            return None
        if name == self.reference or len(part) != 1:
            raise ConfigurationError(
                f"cells.{name} is a baseline of {self.reference!r}, whose head it compresses: it cannot be that "
                "cell itself or have other keys"
            )
        return read_block(BaselineConfig, part[keys[0]], f"cells.{name}.{keys[0]}")

    def _check_shapes(self) -> None:
        """Check blocks and lists: a YAML file can hold anything in their place."""
        _check_part(self.base, "base")
        for name in ("settings", "cells", "backbones"):
            require_block(getattr(self, name), name)
            for key, part in getattr(self, name).items():
                _check_part({} if part is None else part, f"{name}.{key}")
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
        require(self.batch_size, "batch_size", minimum=1)

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
        """All cells share the split documents, so none can have others or read them differently."""
        shared = (*PREPARED, "validation", "test") if self.split is not None else ()
        for name, part in [*self.settings.items(), *self.cells.items()]:
            for key in shared:
                if key in ((part or {}).get("data") or {}):
                    raise ConfigurationError(
                        f"{name} sets data.{key}, which all cells share; set it under base, "
                        "or write a protocol of its own"
                    )

    def _check_decisions(self) -> None:
        """A Softmax cell or a backbone must not become coded through a setting elsewhere."""
        for name, part in self.backbones.items():
            if (part or {}).get("decision") is not None:
                raise ConfigurationError(
                    f"backbones.{name}.decision is {part['decision']!r}, but backbones train with Softmax; remove it"
                )
        for setting, setting_part in self.settings.items():
            shared = merged(self.base, setting_part).get("decision")
            place = f"settings.{setting}" if (setting_part or {}).get("decision") is not None else "base"
            for name, part in self.cells.items():
                if shared is not None and not {"decision", *BASELINE} & set(part or {}):
                    raise ConfigurationError(
                        f"cell {name!r} names no decision, but {place}.decision is {shared!r}, which would make it "
                        "coded; give it `decision: null` for Softmax, or `decision: {}` for the shared layer"
                    )

    def _check_split(self) -> None:
        if self.split is None:
            return
        shares = self.split if isinstance(self.split, Mapping) else {}
        are_small = all(isinstance(share, float) and 0 < share < 0.5 for share in shares.values())
        if set(shares) != {"validation", "test"} or not are_small:
            raise ConfigurationError(
                f"split is {self.split!r}; give validation and test as shares of the documents below 0.5"
            )
        for key in shares:
            if (self.base.get("data") or {}).get(key):
                raise ConfigurationError(
                    f"base.data.{key} is set, but split takes it from base.data.train; remove one of the two"
                )

    def _check_backbone(self, entry: Entry) -> None:
        name = entry.backbone
        if name is not None and (not isinstance(name, str) or name not in self.backbones):
            hint = (
                did_you_mean(str(name), self.backbones) or f"; described are: {', '.join(self.backbones) or '(none)'}"
            )
            raise ConfigurationError(f"cell {entry.key!r} starts from the backbone {name!r}, which is unknown{hint}")


def merged(base: Mapping[str, Any], part: Mapping[str, Any] | None) -> dict[str, Any]:
    """`part` merged into `base`: blocks are merged, everything else is replaced."""
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


def _check_part(part: Any, name: str) -> None:
    """Raise ConfigurationError unless a partial RunConfig is a block, and so are its blocks that others merge with."""
    require_block(part, name)
    for key in BLOCKS:
        if part.get(key) is not None:
            require_block(part[key], f"{name}.{key}")


def _whole_numbers(part: str) -> re.Pattern[str]:
    """Finds `part` where it does not split a number."""
    before = r"(?<!\d)(?<!\d\.)" if part[:1].isdigit() else ""
    after = r"(?!\.?\d)" if part[-1:].isdigit() else ""
    return re.compile(before + re.escape(part) + after)


def _variable(name: str, variables: Mapping[str, str]) -> str:
    if name not in variables:
        hint = " or give --data-dir" if name == "CODEHEAD_DATA" else ""
        raise ConfigurationError(f"the protocol needs ${{{name}}}, which is not set; export {name}=…{hint}")
    return variables[name]


# The protocols that ship with codehead, one YAML file each.


FOLDER = Path(__file__).with_name("catalogue")


def names() -> list[str]:
    """The protocols in natural order: `small-2` before `small-10`."""
    return sorted((path.stem for path in FOLDER.glob("*.yaml")), key=_natural)


def find(name: str) -> Protocol:
    """A protocol by its name here, or from your own YAML file.

    Raises ConfigurationError if there is neither, or if the file is invalid.
    """
    if (FOLDER / f"{name}.yaml").is_file():
        return Protocol.from_yaml(FOLDER / f"{name}.yaml")
    if name.endswith((".yaml", ".yml")) or os.path.exists(name):
        return Protocol.from_yaml(name)
    hint = did_you_mean(name, names()) or "."
    raise ConfigurationError(
        f"unknown protocol {name!r}{hint} Known: {', '.join(names())}; a file of your own ends in .yaml"
    )


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
