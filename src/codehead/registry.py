"""Named parts: every design, head, loss and decoder is found through one of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Generic, TypeVar

from codehead.errors import ConfigurationError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The part of an error message that helps with a misspelt `name`; empty if nothing is close."""
    close = get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown(kind: str, name: object, known: Iterable[str]) -> ConfigurationError:
    """The error for a `name` that is not one of those `known`."""
    hint = did_you_mean(str(name), known) or "."
    return ConfigurationError(f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}")


class Registry(Generic[T]):
    """A mapping from names to parts of one `kind` ("design", "head", …)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files a part under `name`; a name can be taken once."""

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
