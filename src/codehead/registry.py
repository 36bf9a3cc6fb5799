"""Registries of named parts: designs, heads, losses and decoders."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from types import NoneType
from typing import Any, Generic, TypeVar

from codehead.errors import ConfigurationError

T = TypeVar("T")
PLAIN: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
}
"""Types of plain values, and what error messages call them."""
ANNOTATED = {"None": NoneType, **{kind.__name__: kind for kind in (int, float, str, bool)}}
WIDER = {int: Integral, float: Real}
"""Numbers of numpy are numbers too."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The part of an error message that helps with a misspelt `name`; empty if nothing is close."""
    close = get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown(kind: str, name: object, known: Iterable[str]) -> ConfigurationError:
    """The error for a `name` that is not one of those `known`."""
    hint = did_you_mean(str(name), known) or "."
    return ConfigurationError(f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}")


def check_options(part: str, make: Callable[..., Any], options: Mapping[str, Any], known: list[str]) -> None:
    """Raise ConfigurationError for an option of a `part` that is not `known`, or whose value has the wrong type."""
    for name, value in options.items():
        if name not in known:
            hint = did_you_mean(name, known) or "."
            raise ConfigurationError(f"{part} has no option {name!r}{hint} Its options: {', '.join(known) or 'none'}")
        annotation = str(inspect.signature(make).parameters[name].annotation)
        kinds = [ANNOTATED.get(part, object) for part in annotation.split(" | ")]
        if object not in kinds and not any(_is_of(value, kind) for kind in kinds):
            wanted = " or ".join(PLAIN[kind] for kind in kinds)
            raise ConfigurationError(f"{name}={value!r} is not possible for {part}; give {wanted}")


def _is_of(value: Any, kind: type) -> bool:
    return isinstance(value, WIDER.get(kind, kind)) and (kind is bool or not isinstance(value, bool))


class Registry(Generic[T]):
    """A mapping from names to parts of one `kind` ("design", "head", …)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a part under `name`; a name can be used only once."""

        def add(part: T) -> T:
            if name in self._parts:
                raise ConfigurationError(f"{self.kind} {name!r} is already registered; choose another name")
            self._parts[name] = part
            return part

        return add

    def get(self, name: str) -> T:
        """The part called `name`; a ConfigurationError lists the known names if there is none."""
        try:
            return self._parts[name]
        except (KeyError, TypeError):
            raise unknown(self.kind, name, self._parts) from None

    def names(self) -> list[str]:
        """The registered names, in order of registration."""
        return list(self._parts)
