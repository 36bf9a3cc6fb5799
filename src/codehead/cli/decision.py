"""The options of a decision layer, generated from `DecisionConfig`: each field is an option with the field's help."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from codehead.config import DecisionConfig

PANEL = "Decision layer"
OPTIONS_OF = {"code_params": "--param", "head_params": "--head-param"}
"""Fields that are mappings: one option, repeated, gives a KEY=VALUE each."""
KINDS: dict[str, Any] = {"int": int, "bool": bool}
Command = TypeVar("Command", bound=Callable[..., Any])


def decision_options(command: Command) -> Command:
    """Give a command an option for every field of DecisionConfig; they arrive as keywords, None where not given."""
    signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
    own = [
        entry.replace(annotation=hints[entry.name])
        for entry in signature.parameters.values()
        if entry.kind is not entry.VAR_KEYWORD
    ]
    taken = {entry.name for entry in own}
    parameters = [*own, *(_parameter(entry) for entry in fields(DecisionConfig) if entry.name not in taken)]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {entry.name: entry.annotation for entry in parameters}
    return command


def given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of DecisionConfig that options set; mappings are read from their KEY=VALUE pairs."""
    names = [entry.name for entry in fields(DecisionConfig)]
    found = {name: parameters[name] for name in names if parameters.get(name) not in (None, [], ())}
    for name, flag in OPTIONS_OF.items():
        if name in found:
            found[name] = key_values(flag, found[name])
    return found


def key_values(flag: str, pairs: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` strings of a flag as keyword arguments; a value that is not JSON is a string."""
    from codehead.errors import ConfigurationError

    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ConfigurationError(
                f"{flag} {pair!r} is not KEY=VALUE; write the name of the option, =, and its value"
            )
        try:
            values[key] = json.loads(value)
        except (ValueError, RecursionError):
            values[key] = value
    return values


def _parameter(entry: Field[Any]) -> inspect.Parameter:
    flag = OPTIONS_OF.get(entry.name, "--" + entry.name.replace("_", "-"))
    kind = list[str] if entry.name in OPTIONS_OF else KINDS.get(str(entry.type).split(" |")[0], str)
    names = (f"{flag}/--no-{flag[2:]}",) if kind is bool else (flag,)
    default = None if entry.default in (MISSING, None, 0, False) else str(entry.default)
    option = typer.Option(
        *names,
        help=entry.metadata["help"],
        metavar="KEY=VALUE" if entry.name in OPTIONS_OF else None,
        show_default=default or False,
        rich_help_panel=PANEL,
    )
    return inspect.Parameter(
        entry.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )
