"""Makes `from_pretrained` of transformers find codehead, without importing transformers early."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

REGISTRY = "transformers.quantizers.auto"
"""The module that holds the table of checkpoint loaders."""
LOADER = "codehead.screening.loader"
"""Our module, which enters itself into that table when it is imported, and imports that of coded checkpoints."""


def register_loader() -> None:
    """Register the loader of coded checkpoints: now, or as soon as transformers is imported."""
    if REGISTRY in sys.modules:
        import_module(LOADER)
    else:
        sys.meta_path.insert(0, _RegisterOnImport())


class _RegisterOnImport(MetaPathFinder):
    """Waits for the import of the registry, lets it happen as usual, then imports the loader."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                import_module(LOADER)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
