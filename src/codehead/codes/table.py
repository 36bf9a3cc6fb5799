"""A codebook as tensors: codewords of labels for losses, the whole matrix for decoders; and a checksum of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.codes.codebook import Codebook, OneVsAllCodebook, PackedCodebook
from codehead.codes.packing import row_bytes, slices
from codehead.errors import CheckpointError, CodebookError

DENSE_CLASSES = 2**14
"""The most classes for which an implicit code writes out its V × V matrix (1 GiB of float32)."""


class _Copy(NamedTuple):
    """A float32 (V, n) working copy, and the planes it was made from, with their versions at that time."""

    values: Tensor
    planes: list[Tensor]
    versions: list[int | None]

    def is_of(self, planes: list[Tensor]) -> bool:
        """Whether these are the same tensors, even if they were written to."""
        return len(planes) == len(self.planes) and all(a is b for a, b in zip(planes, self.planes, strict=True))


@final
class CodewordTable(nn.Module):
    """The codewords of V classes, packed one or two bits per symbol.

    The planes are persistent uint8 buffers `sign_plane` and, for a ternary code, `support_plane`, both
    (V, ⌈n / 8⌉); an implicit code has neither. `signs` unpacks the whole matrix and keeps it: a working
    copy that is not saved, does not follow the module to a device, and is made anew when a plane changes.
    With `packed`, products use lookups in the planes instead, or unpack temporarily if a gradient may be needed.
    """

    packed: bool = False
    """Whether products need no working copy: 1/32 of its memory (`codes.lookup`)."""

    sign_plane: Tensor | None
    support_plane: Tensor | None

    def __init__(self, codebook: Codebook) -> None:
        planes = {name: torch.from_numpy(plane.copy()) for name, plane in codebook.planes.items()}
        self._declare(codebook.num_classes, codebook.length, planes)

    @classmethod
    def empty(cls, num_classes: int, length: int, is_ternary: bool = False, is_implicit: bool = False) -> CodewordTable:
        """A table with all planes 0, to be filled by `load_state_dict`; works on the meta device."""
        names = [] if is_implicit else ["sign_plane", *(["support_plane"] if is_ternary else [])]
        planes = {name: torch.zeros(num_classes, row_bytes(length), dtype=torch.uint8) for name in names}
        table = cls.__new__(cls)
        table._declare(num_classes, length, planes)
        return table

    def _declare(self, num_classes: int, length: int, planes: dict[str, Tensor]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.length = length
        self._copies: dict[str, _Copy] = {}
        for name in ("sign_plane", "support_plane"):
            self.register_buffer(name, planes.get(name))

    @property
    def is_ternary(self) -> bool:
        """Whether some symbol is 0."""
        return self.support_plane is not None

    @property
    def is_implicit(self) -> bool:
        """Whether nothing is stored: the code is one_vs_all."""
        return self.sign_plane is None

    def lookup(self, ids: Tensor) -> Tensor:
        """The codewords of `ids` (…), integers in 0 … V − 1: float32 (…, n) of −1, 0, +1.

        Only the rows of the ids are unpacked; for an implicit code, however, n = V.
        """
        if self.sign_plane is None:
            codewords = torch.full((*ids.shape, self.length), -1.0, device=ids.device)
            return codewords.scatter(-1, ids.long().unsqueeze(-1), 1.0)
        signs = 2 * self._unpack(_rows(self.sign_plane, ids)) - 1
        return signs if self.support_plane is None else signs * self._unpack(_rows(self.support_plane, ids))

    def signs(self) -> Tensor:
        """The whole coding matrix: float32 (V, n) of −1, 0, +1; the same tensor until a plane changes.

        An implicit code has no tensor and so no device: its matrix is on the default device, and
        limited to 16,384 classes (a CodebookError above).
        """
        if self.sign_plane is not None:
            return self._copy("signs")
        if self.num_classes > DENSE_CLASSES:
            message = f"the one_vs_all matrix of {self.num_classes} classes is too large to write out "
            raise CodebookError(message + f"(more than {DENSE_CLASSES}); its bit logits are the token scores")
        return 2 * torch.eye(self.num_classes) - 1

    def product(self, weights: Tensor) -> Tensor:
        """The coding matrix times weights `(…, n)`, float32 or float64: `(…, V)`. Not for an implicit code."""
        if not self._looks_up(weights):
            return weights @ self._whole("signs").to(weights.dtype).T
        shared = weights.sum(-1, keepdim=True) if self.support_plane is None else self._bit_product(weights, "support")
        return 2 * bit_sums(weights, self._plane("positive")) - shared

    def sided_product(self, plus: Tensor, minus: Tensor) -> Tensor:
        """The sums of `plus` `(…, n)` where a codeword is +1 and of `minus` where it is −1: `(…, V)`. Not implicit."""
        return self._bit_product(plus, "positive") + self._bit_product(minus, "negative")

    def support_sizes(self) -> Tensor:
        """How many symbols of every codeword are not 0: `(V,)`, for a ternary code."""
        return self._bit_product(torch.ones(self.length, device=self._plane("support").device), "support")

    def _bit_product(self, weights: Tensor, name: str) -> Tensor:
        """The plane called `name`, as a matrix of 0 and 1, times weights `(…, n)`: `(…, V)`."""
        if self._looks_up(weights):
            return bit_sums(weights, self._plane(name))
        return weights @ self._whole(name).to(weights.dtype).T

    def _looks_up(self, weights: Tensor) -> bool:
        return self.packed and not (weights.requires_grad and torch.is_grad_enabled())

    def _whole(self, name: str) -> Tensor:
        """The matrix called `name`, kept unless the code stays packed."""
        return self._matrix(name) if self.packed else self._copy(name)

    def _plane(self, name: str) -> Tensor:
        """Where symbols are +1 ("positive"), −1 ("negative") or either ("support"); padding of any value."""
        assert self.sign_plane is not None
        if name == "positive":
            return self.sign_plane
        if name == "negative":
            return ~self.sign_plane if self.support_plane is None else self.support_plane & ~self.sign_plane
        assert self.support_plane is not None
        return self.support_plane

    def reset_cache(self) -> None:
        """Forget the working copies."""
        self._copies.clear()

    def to_codebook(
        self, design: str = "custom", seed: int | None = None, params: dict[str, Any] | None = None
    ) -> Codebook:
        """The table as a validated codebook, whose checksum can be compared with a recorded one."""
        if self.sign_plane is None:
            return OneVsAllCodebook(self.num_classes)
        planes: dict[str, Any] = {name: plane.cpu().numpy() for name, plane in self.named_buffers()}
        return PackedCodebook(length=self.length, design=design, seed=seed, params=params or {}, **planes)

    def _unpack(self, rows: Tensor) -> Tensor:
        """Packed rows (…, bytes) → float32 0 or 1 (…, n)."""
        # One scalar mask per bit: a uint8 shift fails in ONNX export, a mask tensor would be copied to the GPU.
        bits = torch.stack([(rows & (1 << bit)) != 0 for bit in range(8)], dim=-1)
        return bits.flatten(-2)[..., : self.length].float()

    def _matrix(self, name: str) -> Tensor:
        """The working copy called `name`, unpacked: float32 (V, n)."""
        if name != "signs":
            return self._unpack(self._plane(name))
        signs = 2 * self._unpack(self._plane("positive")) - 1
        return signs if self.support_plane is None else signs * self._unpack(self.support_plane)

    def _copy(self, name: str) -> Tensor:
        """The kept working copy if the planes are still the same, else a new one."""
        kept = self._copies.get(name)
        planes = [plane for plane in (self.sign_plane, self.support_plane) if plane is not None]
        if torch.compiler.is_compiling():  # planes are not written to inside a graph, and no copy may leave it
            return kept.values if kept is not None and kept.is_of(planes) else self._matrix(name)
        versions = [version(plane) for plane in planes]
        if kept is None or not kept.is_of(planes) or kept.versions != versions:
            with torch.inference_mode(False):  # the copy may be used in training later
                kept = _Copy(self._matrix(name), planes, versions)
            if planes[0].device.type != "meta":
                self._copies[name] = kept
        return kept.values

    def _apply(self, *args: Any, **kwargs: Any) -> CodewordTable:
        self.reset_cache()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.reset_cache()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copies": {}}  # pickles and deep copies make their own

    def extra_repr(self) -> str:
        kind = "implicit" if self.is_implicit else "ternary" if self.is_ternary else "binary"
        return f"num_classes={self.num_classes}, length={self.length}, {kind}"


def _rows(plane: Tensor, ids: Tensor) -> Tensor:
    """Rows (…, bytes) of a plane; unlike in indexing, a negative id is an error."""
    return plane.index_select(0, ids.reshape(-1).long()).view(*ids.shape, plane.shape[-1])


# Products with a packed plane by table lookup: eight bits of a row at a time, without unpacking.
#
# For every byte of a row, the 256 possible sums of its eight weights are computed first; a row's sum then takes one
# lookup per byte (the Four Russians' method of multiplying binary matrices: V. Arlazarov et al. 1970).


BYTE = 8
ENTRIES = 2**BYTE
LANES = 4
"""The fewest positions looked up together: torch sums single numbers far more slowly than short rows of them."""
CHUNK_INDICES = 2**18
"""Bytes of the plane whose indices (4 bytes each) are written out at a time."""
CHUNK_POSITIONS = 64
"""Positions whose sums are looked up at a time: more do not fit in the cache."""


def bit_sums(weights: Tensor, plane: Tensor) -> Tensor:
    """The sums of the weights `(…, n)`, float32 or float64, where a row's bits are 1: `(…, V)`.

    `plane` is uint8 `(V, ⌈n / 8⌉)`, least significant bit first, its padding 0. Gradients do not pass.
    """
    flat = weights.detach().reshape(-1, weights.shape[-1])
    sums = flat.new_empty(len(flat), len(plane))
    for some in slices(len(flat), CHUNK_POSITIONS):
        _look_up(_entries(flat[some], plane.shape[1]), plane, sums[some])
    return sums.view(*weights.shape[:-1], len(plane))


def _entries(weights: Tensor, num_bytes: int) -> Tensor:
    """The sum for every value of every byte, `(bytes · 256, positions)`, with at least LANES positions."""
    positions, length = weights.shape
    padded = F.pad(weights, (0, num_bytes * BYTE - length, 0, max(0, LANES - positions)))
    values = torch.arange(ENTRIES, device=weights.device)
    bits = torch.stack([(values & (1 << bit)) != 0 for bit in range(BYTE)])
    sums = padded.unflatten(1, (num_bytes, BYTE)) @ bits.to(weights.dtype)  # (positions, bytes, 256)
    return sums.flatten(1).T.contiguous()


def _look_up(entries: Tensor, plane: Tensor, sums: Tensor) -> None:
    """Fill `sums` `(positions, V)`."""
    num_bytes = plane.shape[1]
    offsets = ENTRIES * torch.arange(num_bytes, dtype=torch.int32, device=plane.device)
    for some in slices(len(plane), CHUNK_INDICES // num_bytes):
        found = F.embedding_bag(plane[some].int() + offsets, entries, mode="sum")
        sums[:, some] = found.T[: len(sums)]


# A checksum that is saved with tensors that change only as a whole, such as codewords and token ids.


@final
class Seal(nn.Module):
    """The SHA-256 of tensors, in a buffer `digest` `(32,)` beside them: uint8, zeros until it is closed.

    Copying a whole state dict copies both; averages, soups and in-place edits change the tensors alone. `check` detects
    this: it computes the hash again whenever a tensor is another object or was written to. A seal made on the meta
    device, which has no data to check, is on guard once `close` or `load_state_dict` has filled it.
    """

    digest: Tensor
    on_guard: bool
    """Whether `check` does anything."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("digest", torch.zeros(32, dtype=torch.uint8))
        self.on_guard = not self.digest.is_meta
        self._seen: list[tuple[Tensor, int | None]] = []

    @property
    def is_open(self) -> bool:
        """Whether the seal was never closed."""
        return self.digest.is_meta or not bool(self.digest.any())

    def close(self, tensors: Mapping[str, Tensor]) -> None:
        """Record the hash of the tensors as they are; on the meta device there is nothing to record yet."""
        if not _any_meta(tensors):
            device = next(iter(tensors.values())).device
            self.digest = torch.frombuffer(bytearray(_sha256(tensors)), dtype=torch.uint8).to(device)
            self.on_guard = True

    def check(self, tensors: Mapping[str, Tensor], owner: str = "") -> None:
        """Raise a CheckpointError if the tensors, of the module `owner`, are not those it was closed with.

        It does nothing inside a compiled graph, or for offloaded tensors.
        """
        if torch.compiler.is_compiling() or not self.on_guard or self.digest.is_meta or _any_meta(tensors):
            return
        state = [(values, version(values)) for values in (self.digest, *tensors.values())]
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
        if f"{prefix}digest" in state_dict:  # states saved before seals existed have none
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            self.on_guard = True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": []}  # copies check for themselves


def _any_meta(tensors: Mapping[str, Tensor]) -> bool:
    return any(values.is_meta for values in tensors.values())


def version(values: Tensor) -> int | None:
    """How often a tensor was written to; None if torch does not count it."""
    return None if values.is_inference() else values._version


def _sha256(tensors: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()
