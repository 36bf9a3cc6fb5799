"""Blocks of keys: mappings → dataclasses, with errors that name the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_type_hints

from codehead.errors import ConfigurationError
from codehead.registry import did_you_mean

PLAIN = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
LARGEST = 2**63 - 1
"""The largest whole number that torch and Arrow take."""
Block = TypeVar("Block")


def read_block(kind: type[Block], values: Any, name: str) -> Block:
    """A dataclass from the values of the block `name`; ConfigurationError for keys or types that it does not have."""
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
                f"{name or 'the configuration'} has the key {key!r}; a key is text: mend or quote it"
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
    """Raise ConfigurationError unless fields of a dataclass that hold plain values have such; numbers are finite."""
    hints = get_type_hints(kind)
    for key, value in values.items():
        allowed, full = set(get_args(hints[key])) or {hints[key]}, f"{name}.{key}" if name else key
        if allowed <= set(PLAIN) and not _is_one_of(value, allowed):
            wanted = " or ".join(word for plain, word in PLAIN.items() if plain in allowed)
            raise ConfigurationError(f"{full} is {value!r}; give {wanted}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"{full} is {value!r}; give a finite number")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ConfigurationError(f"{full} is {value}; give a number of at most {LARGEST}")


def _is_one_of(value: Any, types: set[type]) -> bool:
    return type(value) in types or (type(value) is int and float in types)


def require(value: Any, name: str, *, minimum: int, maximum: int = LARGEST) -> None:
    """Raise ConfigurationError unless the value of the key `name` is a whole number from `minimum` to `maximum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigurationError(f"{name} is {value!r}; give a whole number of at least {minimum}")
    if value > maximum:
        raise ConfigurationError(f"{name} is {value}; give a whole number of at most {maximum}")
