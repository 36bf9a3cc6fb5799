"""Registers codehead with transformers' `from_pretrained`, without importing transformers or our modules early.

transformers keeps two tables of loaders. Our entries import the loader only when a checkpoint asks for it, so that no
other program pays for it in time or errors.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

METHOD = "codehead"
"""The name under which transformers finds the loader: `quantization_config.quant_method`."""
REGISTRY = "transformers.quantizers.auto"
"""The module that holds the tables."""
LOADER = "codehead.screening.model"
"""Our module with both loaders; it imports that of coded checkpoints."""


def register_loader() -> None:
    """Register the loader of coded and screened checkpoints: now, or as soon as transformers has its tables."""
    if not _entered() and not any(isinstance(finder, _Registration) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Registration())


class _Registration:
    """A module finder that finds nothing: it registers the loader when the tables exist.

    They exist after the import of their module. If that is already in progress, because torch was first imported from
    within it, the next import of a part of transformers, such as a model's, registers the loader.
    """

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if not name.startswith("transformers."):
            return None
        if name == REGISTRY:
            return self._followed(name, path, target)
        if _entered() and self in sys.meta_path:
            sys.meta_path.remove(self)
        return None

    def _followed(self, name: str, path: Sequence[str] | None, target: Any) -> ModuleSpec | None:
        """The module as the other finders find it; the loader is registered once it is executed."""
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_enter(module: ModuleType) -> None:
                execute(module)
                _entered()

            spec.loader.exec_module = execute_and_enter  # type: ignore[method-assign]
        return spec


def _entered() -> bool:
    """Register the loader if the tables exist; returns whether nothing is left to do. Raises nothing."""
    tables = getattr(sys.modules.get(REGISTRY), "__dict__", {})
    if "AUTO_QUANTIZATION_CONFIG_MAPPING" not in tables:  # the second of the two
        return False
    try:
        tables["AUTO_QUANTIZATION_CONFIG_MAPPING"][METHOD] = _Config
        tables["AUTO_QUANTIZER_MAPPING"][METHOD] = _loader
    except Exception as error:  # our errors must not break transformers
        import logging  # rarely needed

        logging.getLogger("codehead").warning(f"codehead cannot register its loader with transformers: {error!r}")
    return True


class _Config:
    """The entry for configurations."""

    @staticmethod
    def from_dict(entry: dict[str, Any]) -> Any:
        return import_module(LOADER).config_of(entry)


def _loader(config: Any, **options: Any) -> Any:
    """The entry for loaders."""
    return import_module(LOADER).loader_of(config, **options)
