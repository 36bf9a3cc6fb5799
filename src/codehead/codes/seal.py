"""A checksum that travels with tensors which change only as a whole, such as codewords and token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from codehead.errors import CheckpointError

DIGEST_BYTES = 32
"""Of a sha256."""


@final
class Seal(nn.Module):
    """The sha256 of tensors, in a buffer `digest` `(32,)` beside them: uint8, zeros as long as it is open.

    Whatever copies a state dict as a whole copies both. Averages, soups and edits in place change the tensors alone.
    `check` finds it out: it looks anew whenever a tensor is another object or was written to. What is made on the meta
    device, where there is nothing to look at, is on guard once `close` or `load_state_dict` has filled it.
    """

    digest: Tensor
    on_guard: bool
    """Whether `check` looks at all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("digest", torch.zeros(DIGEST_BYTES, dtype=torch.uint8))
        self.on_guard = not self.digest.is_meta
        self._seen: list[tuple[Tensor, int | None]] = []

    @property
    def is_open(self) -> bool:
        """Whether it was never closed."""
        return self.digest.is_meta or not bool(self.digest.any())

    def close(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tensors as they are; on the meta device there is nothing to take yet."""
        if not _any_meta(tensors):
            device = next(iter(tensors.values())).device
            self.digest = torch.frombuffer(bytearray(_sha256(tensors)), dtype=torch.uint8).to(device)
            self.on_guard = True

    def check(self, tensors: Mapping[str, Tensor], owner: str = "") -> None:
        """Raise a CheckpointError if the tensors, of the module `owner`, are not those that it was closed with.

        Not inside a compiled graph, and not for tensors that are offloaded.
        """
        if torch.compiler.is_compiling() or not self.on_guard or self.digest.is_meta or _any_meta(tensors):
            return
        state = [(values, _version(values)) for values in (self.digest, *tensors.values())]
        if [(id(values), version) for values, version in state] == [(id(v), version) for v, version in self._seen]:
            return
        if bytes(self.digest.tolist()) != _sha256(tensors):
            raise CheckpointError(
                f"{', '.join(owner + name for name in sorted(tensors))} differ from their sha256 in seal.digest: these "
                "integers mean something only as they were, and have been averaged (AveragedModel with "
                "use_buffers=True), edited or damaged. Restore them from the original model or checkpoint; "
                "decision.replace_codebook takes other codewords"
            )
        self._seen = state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if f"{prefix}digest" in state_dict:  # states from before there was a seal have none
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            self.on_guard = True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": []}  # copies look for themselves


def _any_meta(tensors: Mapping[str, Tensor]) -> bool:
    return any(values.is_meta for values in tensors.values())


def _version(values: Tensor) -> int | None:
    """How often a tensor was written to; None where torch does not count."""
    return None if values.is_inference() else values._version


def _sha256(tensors: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()
