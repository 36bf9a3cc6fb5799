"""The protocols that come with codehead, each one YAML file in this folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from codehead.errors import ConfigurationError
from codehead.lab.protocols.protocol import Protocol
from codehead.registry import did_you_mean

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The protocols in natural order: `small-2` before `small-10`."""
    return sorted((path.stem for path in FOLDER.glob("*.yaml")), key=_natural)


def find(name: str) -> Protocol:
    """A protocol by its name here, or from a YAML file of one's own.

    Raises ConfigurationError if there is neither, or for what the file says.
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
