"""Outputs of a training forward: the token logits are computed when they are asked for, which the loss never does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor


def with_logits_on_demand(outputs: Any, compute: Callable[[], Tensor]) -> Any:
    """The same outputs, whose `.logits` is None no longer: `compute` is called when they are first asked for.

    To everything that lists or gathers the entries, they are absent as before.
    """
    kind: Any = type(outputs)
    later = _on_demand(kind)(**outputs)
    object.__setattr__(later, "_compute", compute)
    return later


@functools.cache
def _on_demand(base: Any) -> Any:
    """A class of outputs like `base` that computes what is asked for as `logits`."""

    def get(self: Any, name: str) -> Any:
        value = base.__getattribute__(self, name)
        if name != "logits" or value is not None or self._compute is None:
            return value
        compute, self._compute = self._compute, None
        try:
            self.logits = compute()
        except BaseException:
            self._compute = compute
            raise
        return self.logits

    def item(self: Any, key: Any) -> Any:
        return self.logits if key == "logits" else base.__getitem__(self, key)

    members = {"_compute": None, "__getattribute__": get, "__getitem__": item, "__module__": base.__module__}
    return type(f"{base.__name__}WithLogitsOnDemand", (base,), members)
