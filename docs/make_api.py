"""Write docs/api.md: the public names of codehead and the registered parts, with signatures and docstrings.

python docs/make_api.py --out docs/api.md
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import codehead
from codehead.registry import Registry

HEAD = """# API

Generated from docstrings by `make api`. Every name below can be imported from `codehead`. The parts in the registries
are chosen by name, as in `codehead.attach(model, code="minrandom", head="mtl")`.
"""


def page() -> str:
    """The page as Markdown."""
    names = [name for name in codehead.__all__ if not isinstance(getattr(codehead, name), str)]
    registries = [name for name in names if isinstance(getattr(codehead, name), Registry)]
    parts = [HEAD, f"Version {codehead.__version__}\n"]
    for name in names:
        if name not in registries:
            parts += _entry("##", f"codehead.{name}", name, getattr(codehead, name))
    for name in registries:
        registry: Registry[Any] = getattr(codehead, name)
        parts.append(f"## codehead.{name}\n")
        for part in registry.names():
            parts += _entry("###", f"{registry.kind} {part}", part, _source(registry.get(part)))
    return "\n".join(parts)


def _source(part: Any) -> Any:
    """What has signature and docstring: the function of a design, the class of a decoder that is an object."""
    part = getattr(part, "make", part)
    return part if inspect.isclass(part) or inspect.isfunction(part) else type(part)


def _entry(level: str, title: str, name: str, thing: Any) -> Iterator[str]:
    yield f"{level} {title}\n"
    yield _described(name, thing)
    if inspect.isclass(thing) and level == "##":
        for method, function in _methods(thing):
            yield f"### {name}.{method}\n"
            yield _described(method, function)


def _described(name: str, thing: Any) -> str:
    code = f"```py\n{name}{_signature(thing)}\n```\n\n" if _has_signature(thing) else ""
    told = "\n".join([inspect.getdoc(thing) or "", *_fields(thing)]).strip()
    return f"{code}```text\n{told}\n```\n"


def _signature(thing: Any) -> str:
    """The signature, without the quotes that postponed annotations have."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(thing)))


def _fields(thing: Any) -> Iterator[str]:
    """The fields of a dataclass that have a help text."""
    entries = fields(thing) if inspect.isclass(thing) and is_dataclass(thing) else ()
    helped = [entry for entry in entries if "help" in entry.metadata]
    yield from ["", "Fields:"] if helped else []
    for entry in helped:
        yield f"    {entry.name}: {entry.metadata['help']}"


def _has_signature(thing: Any) -> bool:
    return inspect.isfunction(thing) or (inspect.isclass(thing) and not issubclass(thing, BaseException))


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines itself."""
    for name, member in vars(kind).items():
        function = getattr(member, "__func__", member)
        if not name.startswith("_") and (inspect.isfunction(function) or isinstance(function, property)):
            yield name, function


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "api.md")
    parser.parse_args().out.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
