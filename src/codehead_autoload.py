"""Runs at `import torch`, as an entry point of torch: coded and screened checkpoints load without `import codehead`.

It stands outside of the package, and is copied to site-packages even by an editable installation: torch cannot be
imported if an entry point of it fails, and this one must not, whatever has happened to the package.
"""

from __future__ import annotations

import os

VARIABLE = "CODEHEAD_AUTOLOAD"
"""Set to 0, this environment variable keeps codehead away until `import codehead`."""


def register() -> None:
    """Register the loader of checkpoints with transformers, which is not imported yet; a fault becomes a warning."""
    if os.environ.get(VARIABLE) == "0":
        return
    try:
        import codehead  # noqa: F401 - that registers it
    except Exception as error:
        import logging  # seldom needed

        logging.getLogger("codehead").warning(
            f"codehead cannot register itself ({error!r}): its checkpoints will not load. Mend or uninstall it, or set "
            f"{VARIABLE}=0"
        )
