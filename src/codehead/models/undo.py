"""All or nothing: a model is as it was after an operation on it has failed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

Function = TypeVar("Function", bound=Callable[..., Any])


def all_or_nothing(operation: Function) -> Function:
    """An operation on a model, its first argument, that leaves the model as it was if it raises anything."""

    @functools.wraps(operation)
    def undone(model: Any, *args: Any, **kwargs: Any) -> Any:
        with unchanged_by_failure(model):
            return operation(model, *args, **kwargs)

    return undone  # type: ignore[return-value]


@contextmanager
def unchanged_by_failure(model: Any) -> Iterator[None]:
    """Put modules, their classes, parameters, attributes and configurations back if the block raises anything.

    Numbers are not copied: the block may replace tensors, but must not write into them.
    """
    kept = [_Kept(part) for part in _parts(model)] if isinstance(model, nn.Module) else []
    try:
        yield
    except BaseException:
        for part in kept:
            part.put_back()
        raise


def _parts(model: nn.Module) -> Iterator[Any]:
    """The modules and parameters of a model and of the head kept for `detach`, and its configurations."""
    head = getattr(vars(model).get("_kept"), "head", None)
    for root in (model,) if head is None else (model, head):
        yield from root.modules()
        yield from root.parameters()
    configs = [vars(module).get("config") for module in model.modules()]
    known: set[int] = set()
    while configs:
        config = configs.pop()
        if hasattr(config, "to_dict") and id(config) not in known:
            known.add(id(config))
            configs += vars(config).values()
            yield config


class _Kept:
    """What one object was: its class, its attributes, and what the containers among them held."""

    def __init__(self, part: Any) -> None:
        self.part, self.kind = part, type(part)
        self.attributes = dict(vars(part))
        containers = (value for value in self.attributes.values() if isinstance(value, dict | set | list))
        self.containers = [(value, value.copy()) for value in containers]
        self.tensor = (part.data, part.requires_grad) if isinstance(part, nn.Parameter) else None

    def put_back(self) -> None:
        if type(self.part) is not self.kind:
            self.part.__class__ = self.kind
        vars(self.part).clear()
        vars(self.part).update(self.attributes)
        for container, held in self.containers:
            container.clear()
            container.extend(held) if isinstance(container, list) else container.update(held)
        if self.tensor is not None:
            self.part.data, trained = self.tensor
            self.part.requires_grad_(trained)
