"""The values of a run: YAML → mappings, and others laid over them by dotted keys."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from codehead.boundaries import read_text, reason
from codehead.errors import ConfigurationError

MERGE_TAG = "tag:yaml.org,2002:merge"  # `<<: *anchor`, which YAML allows more than once


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the values of a run with `overrides` (dotted keys → values) laid over them."""
    blocks = copy.deepcopy(dict(values))
    for key, value in overrides.items():
        _set_dotted(blocks, key, value)
    return blocks


def parse_assignment(text: str) -> tuple[str, Any]:
    """`"training.learning_rate=3e-4"` → `("training.learning_rate", 0.0003)`; the value is YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigurationError(f"--set {text!r} is not of the form key=value, as in training.max_steps=100")
    try:
        return key.strip(), yaml.load(value, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = getattr(error, "problem", None) or reason(error)
        raise ConfigurationError(
            f"{key.strip()} is {_short(value)}, which is not valid YAML ({problem}); close every bracket and quote"
        ) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigurationError if it is missing, broken or not a mapping."""
    text = read_text(path, "configuration file", ConfigurationError)
    try:
        values = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # values: dates and numbers that there are not
        raise ConfigurationError(f"configuration file {str(path)!r} is not valid YAML: {reason(error)}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"configuration file {str(path)!r} must hold `key: value` lines")
    return values


def _short(value: str) -> str:
    return repr(value if len(value) < 200 else f"{value[:200]}…")


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `3e-4` as a number, as YAML 1.2 does, and refuses a key that is given twice."""

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


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[last] = value
