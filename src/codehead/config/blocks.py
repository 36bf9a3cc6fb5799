"""Configuration blocks: YAML → mappings, overridden by others → dataclasses; errors name the key."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from codehead.boundaries import read_text, reason
from codehead.errors import ConfigurationError
from codehead.registry import PLAIN, did_you_mean

LARGEST = 2**63 - 1
"""The largest whole number that torch and Arrow take."""
Block = TypeVar("Block")


def read_block(kind: type[Block], values: Any, name: str) -> Block:
    """A dataclass from the values of the block `name`; ConfigurationError for unknown keys or wrong types."""
    values = {} if values is None else values
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    check_keys(values, known, name)
    check_types(kind, values, name)
    try:
        return kind(**values)
    except TypeError as error:
        missing = [key for key in known if f"'{key}'" in str(error)]
        where = f"{name}." if name else ""
        raise ConfigurationError(f"missing: {', '.join(where + key for key in missing)}") from None


def require_block(values: Any, name: str) -> None:
    """Raise ConfigurationError unless the value of `name` is a mapping."""
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{name} is {values!r}; it must be a block of `key: value` lines")
    for key in values:
        if not isinstance(key, str):
            raise ConfigurationError(
                f"{name or 'the configuration'} has the key {key!r}; a key is text: fix or quote it"
            )


def check_keys(values: Mapping[str, Any], known: Any, name: str) -> None:
    """Raise ConfigurationError unless the value of `name` is a mapping of `known` keys."""
    require_block(values, name)
    for key in values:
        if key not in known:
            full = f"{name}.{key}" if name else str(key)
            hint = did_you_mean(str(key), known) or f"; known: {', '.join(sorted(known))}"
            raise ConfigurationError(f"unknown key {full!r}{hint}")


def check_types(kind: type, values: Mapping[str, Any], name: str) -> None:
    """Raise ConfigurationError unless a dataclass's plain fields get values of their types, and finite numbers."""
    hints = get_type_hints(kind)
    for key, value in values.items():
        allowed, full = set(get_args(hints[key])) or {hints[key]}, f"{name}.{key}" if name else key
        if allowed <= set(PLAIN):
            wanted = " or ".join(word for plain, word in PLAIN.items() if plain in allowed)
            is_plain = type(value) in allowed or (type(value) is int and float in allowed)
            require_that(is_plain, full, value, f"give {wanted}")
        require_finite(value, full)
        is_small = not isinstance(value, int) or abs(value) <= LARGEST
        require_that(is_small, full, value, f"give a number of at most {LARGEST}")


def require(value: Any, name: str, *, minimum: int, maximum: int = LARGEST) -> None:
    """Raise ConfigurationError unless the value of the key `name` is a whole number from `minimum` to `maximum`."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    require_that(is_whole and value >= minimum, name, value, f"give a whole number of at least {minimum}")
    require_that(value <= maximum, name, value, f"give a whole number of at most {maximum}")


def require_that(holds: bool, name: str, value: Any, remedy: str) -> None:
    """Raise ConfigurationError with the `remedy` unless a condition `holds` for the value of the key `name`."""
    if not holds:
        raise ConfigurationError(f"{name} is {value!r}; {remedy}")


def require_finite(value: Any, name: str) -> None:
    """Raise ConfigurationError if the value of the key `name` is a number that is not finite."""
    require_that(not isinstance(value, float) or math.isfinite(value), name, value, "give a finite number")


def require_bool(value: Any, name: str) -> None:
    """Raise ConfigurationError unless the value of the key `name` is true or false."""
    require_that(isinstance(value, bool), name, value, "give true or false")


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a run's values with `overrides` (dotted keys → values) applied.

    ConfigurationError if a key is to be set in something other than a block.
    """
    blocks = copy.deepcopy(dict(values))
    for key, value in overrides.items():
        *parents, last = key.split(".")
        block = blocks
        for depth, parent in enumerate(parents, start=1):
            if block.get(parent) is None:
                block[parent] = {}
            require_block(block[parent], ".".join(parents[:depth]))
            block = block[parent]
        block[last] = value
    return blocks


def parse_assignment(text: str) -> tuple[str, Any]:
    """`"training.learning_rate=3e-4"` → `("training.learning_rate", 0.0003)`; the value is YAML."""
    import yaml  # commands that read no YAML need not wait for it

    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigurationError(f"--set {text!r} is not of the form key=value, as in training.max_steps=100")
    try:
        return key.strip(), yaml.load(value, Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = getattr(error, "problem", None) or reason(error)
        shown = repr(value if len(value) < 200 else f"{value[:200]}…")
        raise ConfigurationError(
            f"{key.strip()} is {shown}, which is not valid YAML ({problem}); close every bracket and quote"
        ) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigurationError if it is missing, broken or not a mapping."""
    import yaml

    text = read_text(path, "configuration file", ConfigurationError)
    try:
        values = yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: impossible dates and numbers
        raise ConfigurationError(f"configuration file {str(path)!r} is not valid YAML: {reason(error)}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"configuration file {str(path)!r} must hold `key: value` lines")
    return values


MERGE_TAG = "tag:yaml.org,2002:merge"  # `<<: *anchor`, which YAML allows more than once


@cache
def _loader() -> Any:
    """A SafeLoader that reads `3e-4` as a number, as YAML 1.2 does, and refuses a key that is given twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != MERGE_TAG:
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"the key {key.value!r} is given twice; rename or remove one", key.start_mark
                        )
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    number = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader
