"""The code of a head's rows as stored in a checkpoint, and the search in it: hidden states → tokens that may win."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codehead.codes.packing import RandomBits, row_bytes
from codehead.codes.table import Seal
from codehead.config.blocks import read_block, require_that
from codehead.decoding import fast_scan
from codehead.decoding.fast_scan import Ceilings, FastScan, Found, Numbers, bit_tables, copies, whole_bytes
from codehead.decoding.scan import SHARED
from codehead.errors import CheckpointError, ConfigurationError
from codehead.layer import WRITTEN
from codehead.models.hidden import PIECE
from codehead.screening.transform_coding import pieces

MODES = ("fast", "exact")
CERTIFICATES = ("calibrated", "proof")
AROUND = 4e6
"""Overhead of a step beyond reading codewords and rows, in bytes that could be read in that time."""
PROBES = 64
"""Rows by whose norms a head is recognised, as far as older checkpoints tell."""
DEVIATIONS = 8
"""How many standard deviations a mark may be off: by rounding alone, one in 10¹⁵ is."""
MARK_UNIT = 2.0**-24
"""The rounding error of a mark, which is stored in float32, as a share of it."""
ROUNDS = 4
"""Rounds in which the unscanned bits are read, each for half as many tokens."""
FLOAT32 = 1e-6
"""The largest error of float32 in bit logits, as a share of the sum of their magnitudes."""
BYTES = (np.arange(256) >> np.arange(8)[:, None] & 1).astype(np.float32)
"""`(8, 256)`: the bits of every byte, least significant first."""


@dataclass(frozen=True)
class Settings:
    """The description of a screen, as in `config.json`."""

    num_classes: int
    hidden_size: int
    bits: int
    """n: bits of every token."""
    mode: str = "fast"
    """"fast" takes the best of the candidates; "exact" only if no other token can be better."""
    candidates: int = 256
    """Tokens whose rows are multiplied with the hidden state."""
    prefix: int = 0
    """Bits that are scanned, a multiple of 8; 0: all of them, as in mode "exact"."""
    scanned: int = 0
    """Tokens that the prefix keeps; all bits then choose the candidates among them."""
    rank: int = 0
    """Coordinates of the hidden state that are computed."""
    blocks: int = 0
    """Blocks of coordinates whose residual norms are stored; 0 in mode "fast"."""
    factor: float = 1.0
    """The factor on the norms; 1 makes the bound a proof."""
    promised: float = 0.0
    """The least share of positions where the best token is a candidate (fast), or the bound holds (exact)."""
    confidence: float = 0.0
    """The confidence of that promise, over draws of the calibration positions."""
    calibration_positions: int = 0
    measured: float = 0.0
    """The share of held-out positions where the best token was a candidate."""
    test_positions: int = 0
    data: str = ""
    """Where the hidden states come from."""
    dtype: str = ""
    """The dtype of the rows that were screened; "" in older checkpoints, which have no marks of them."""

    @property
    def scanned_bits(self) -> int:
        """Bits of every token that are scanned."""
        return self.prefix or self.bits

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Settings:
        """Settings from the output of `asdict`; CheckpointError for anything else."""
        name = "quantization_config.screening"
        try:
            found = read_block(cls, entry, name)
            require_that(found.mode in MODES, f"{name}.mode", found.mode, f"give {' or '.join(MODES)}")
        except ConfigurationError as error:
            raise CheckpointError(f"{error}; restore config.json from the original checkpoint") from None
        return found


@final
class Screen(nn.Module):
    """A code for the rows of a head, and the whitened coordinates h′ of hidden states that it reads.

    Floats are stored as the bits of float32, so that no cast of the model rounds them. Buffers: `plane` `(V, bytes)`;
    `mean` `(H,)` and `white` `(rank, H)`, h′ = white · (h − mean); `common` `(rank,)`, the part common to all rows;
    `coordinates` and `sizes` `(n,)`, bit logit j being sizes[j] · h′[coordinates[j]]; `norms` `(V, blocks)` of
    residuals; `spans` `(M,)`, the usual widths of a scan's tables; `probes` `(PROBES,)`, norms of some rows; `marks`
    `(V,)`, by which every row is recognised.
    """

    plane: Tensor
    coordinates: Tensor
    white: Tensor

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        classes, hidden, blocks = settings.num_classes, settings.hidden_size, settings.blocks
        tables = 2 * row_bytes(settings.scanned_bits) + blocks + blocks % 2 + 4
        shapes: dict[str, tuple[int, ...]] = {
            "mean": (hidden,), "white": (settings.rank, hidden), "common": (settings.rank,),
            "sizes": (settings.bits,), "norms": (classes, blocks), "spans": (tables,), "probes": (PROBES,),
        }  # fmt: skip
        if settings.dtype:
            shapes["marks"] = (classes,)
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("plane", torch.zeros(classes, row_bytes(settings.bits), dtype=torch.uint8))
        self.register_buffer("coordinates", torch.zeros(settings.bits, dtype=torch.int32))
        self.seal = Seal()
        self._search: Search | None = None
        self._column: Tensor | None = None

    def set(self, name: str, values: Tensor) -> None:
        """Keep float32 numbers in the buffer called `name`."""
        getattr(self, name).copy_(values.float().contiguous().view(torch.int32))

    def get(self, name: str) -> Tensor:
        """The float32 numbers in the buffer called `name`."""
        return getattr(self, name).view(torch.float32)

    @property
    def bytes_read(self) -> int:
        """Bytes read by the step of one position, without the rows of its candidates."""
        scanned = self.settings.num_classes * row_bytes(self.settings.scanned_bits)
        rest = self.settings.scanned * (self.plane.shape[1] - row_bytes(self.settings.scanned_bits))
        norms = self.settings.num_classes * -(-self.settings.blocks // 2)  # four bits each
        return self.white.nbytes + scanned + norms + rest // 2  # of the rest, see Search._refined

    def obstacle(self, weight: Tensor) -> str | None:
        """Why the rows `(V, H)` of a head, in any dtype, cannot be screened by this code where they are."""
        reason = fast_scan.obstacle(weight.device.type) or fast_scan.obstacle(self.plane.device.type)
        if reason is not None:
            return reason
        if torch.allclose(probes(weight), self.get("probes"), rtol=2**-8, atol=1e-6) and self._recognises(weight):
            return None
        return "the rows of the head are not those that its code was made for; run codehead.screen again"

    def _recognises(self, weight: Tensor) -> bool:
        """Whether every row has its mark, up to the rounding of the mark and, in another dtype, of the row.

        Rounding adds independent errors of at most u |w| to the numbers w of a row, and so a normal variable with a
        standard deviation of at most u ‖w‖ to its mark.
        """
        if not self.settings.dtype:
            return True
        limits, tiny = torch.finfo(weight.dtype), torch.finfo(weight.dtype).tiny * weight.shape[1] ** 0.5
        unit = MARK_UNIT + (limits.eps / 2 if dtype_name(weight) != self.settings.dtype else 0)
        parts = zip(pieces(weight), self.get("marks").split(PIECE), strict=True)
        return all(
            bool(((marks(rows) - kept).abs() <= DEVIATIONS * unit * (rows.norm(dim=1) + tiny)).all())
            for rows, kept in parts
        )

    def pays(self, positions: int, weight: Tensor) -> bool:
        """Whether scanning for `positions` positions is faster than one product with all rows `(V, H)` for all."""
        kept = self.settings
        is_proof = kept.mode == "exact" and kept.factor == 1
        if positions == 1 or is_proof:  # half the proofs need more candidates, and all positions wait for them
            return positions == 1
        scanned = positions * (self.bytes_read + kept.candidates * weight[0].nbytes + AROUND)
        return scanned * (2 if kept.mode == "exact" else 1) < weight.nbytes * max(1, positions / SHARED)

    def integers(self) -> dict[str, Tensor]:
        """The buffers, which change only as a whole, for their checksum."""
        return dict(self.named_buffers(recurse=False))

    def prepare(self, weight: Tensor, bias: Tensor | None) -> None:
        """Build the index for the rows `(V, H)` of a head and its bias `(V,)`; some milliseconds per million tokens."""
        mean = self.get("mean").to(weight.device)
        biases = torch.cat([(rows.float() @ mean).cpu() for rows in weight.detach().split(2**14)])
        if bias is not None:
            biases = biases + bias.detach().float().cpu()
        self._search = Search(self, biases.double().numpy())
        self._column = weight.detach()[:, 0].clone()

    @property
    def search(self) -> Search:
        """The index that `prepare` built."""
        assert self._search is not None
        return self._search

    def is_ready(self, weight: Tensor) -> bool:
        """Whether the index is built; not if the first number of any row `(V, H)` has changed since then.

        That shows even rows written through `.data`, of which torch keeps no version.
        """
        return self._column is not None and torch.equal(self._column, weight.detach()[:, 0])

    def _apply(self, *args: Any, **kwargs: Any) -> Screen:
        self._search = self._column = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.pop(f"{prefix}{WRITTEN}", None)  # from a checkpoint, whose loader has already read it
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_search": None, "_column": None}  # FAISS cannot be pickled: copies build their own

    def extra_repr(self) -> str:
        kept = self.settings
        promise = f"{kept.promised:.3%} promised with {kept.confidence:.0%} confidence, {kept.measured:.3%} measured"
        return f"mode={kept.mode!r}, bits={kept.bits}, candidates={kept.candidates}, {promise}"


class Candidates(NamedTuple):
    """The tokens that score best by the code."""

    ids: np.ndarray
    """`(positions, m)`, int64."""
    rest: np.ndarray | None
    """`(positions,)`, in mode "exact": an upper bound on the scores of the other tokens, if the bound holds."""


@final
class Search:
    """The index over the codewords of a screen, for the rows of a head whose scores at the mean are `biases` `(V,)`."""

    def __init__(self, screen: Screen, biases: np.ndarray) -> None:
        self.settings = settings = screen.settings
        self.mean, self.white, self.common = (screen.get(name).clone() for name in ("mean", "white", "common"))
        self.sizes, self.coordinates = screen.get("sizes").numpy().copy(), screen.coordinates.long().numpy()
        first, last = np.split(screen.plane.numpy(), [row_bytes(settings.scanned_bits)], axis=1)
        rounds = min(ROUNDS, last.shape[1])
        self.rounds = [np.ascontiguousarray(part) for part in np.array_split(last, rounds, axis=1)] if rounds else []
        self.numbers = Numbers.of(biases)
        self.ceilings = Ceilings.of(screen.get("norms").numpy()) if settings.blocks else None
        planes = [first, *([] if self.ceilings is None else [self.ceilings.plane]), self.numbers.plane]
        parts = copies(screen.get("spans").double().numpy())
        self.scan = FastScan(np.concatenate(planes, axis=1), parts)

    def best(self, hidden: Tensor, count: int) -> Candidates:
        """The `count` tokens that may score best at hidden states `(positions, H)`, by their scores or bounds."""
        white = self.whitened(hidden)
        logits = self.bit_logits(white)
        classes = self.settings.num_classes
        found = self.scan.search(self.tables(white, logits), min(max(count, self.settings.scanned), classes))
        if self.settings.mode == "fast":
            return Candidates(self._refined(found, logits, count) if self.rounds else found.ids, None)
        if found.ids.shape[1] == classes:
            return Candidates(found.ids, np.full(len(logits), -np.inf))
        return Candidates(found.ids, self._bounds(found, white, logits)[:, -1])

    def whitened(self, hidden: Tensor) -> Tensor:
        """h′ `(positions, rank)`, float32."""
        return F.linear(hidden.float() - self.mean, self.white)

    def bit_logits(self, white: Tensor) -> np.ndarray:
        """`(positions, n)`, float32: the scores of the code are ½ c · z."""
        return np.asarray(white.numpy().take(self.coordinates, axis=1) * self.sizes)

    def tables(self, white: Tensor, logits: np.ndarray) -> np.ndarray:
        """Tables `(positions, M, 16)` of the bits, of the residual bounds, and of every token's score at the mean."""
        found = bit_tables(logits[:, : self.settings.scanned_bits])
        if self.ceilings is not None:
            norms = block_norms(white, self.settings.blocks).numpy()
            found = np.concatenate([found, self.ceilings.tables(self.settings.factor * norms)], axis=1)
        return self.numbers.beside(found)

    def spans(self, hidden: Tensor) -> Tensor:
        """The usual width of every table `(M,)` at hidden states `(positions, H)`."""
        white = self.whitened(hidden)
        tables = self.tables(white, self.bit_logits(white))
        return torch.from_numpy(np.quantile(np.ptp(tables, axis=2), 0.9, axis=0))

    def _refined(self, found: Found, logits: np.ndarray, count: int) -> np.ndarray:
        """The best `(positions, count)` of the tokens found, best first; every round reads bits of the better half."""
        tables = whole_bytes(logits[:, self.settings.scanned_bits :]).reshape(len(logits), -1, 8) @ BYTES
        kept = []
        for ids, scores, table in zip(found.ids, found.scores, tables, strict=True):
            for part, own in zip(self.rounds, np.array_split(table, len(self.rounds)), strict=True):
                scores = scores + _sums(own, part.take(ids, axis=0))
                half = max(count, len(ids) // 2)
                best = np.argpartition(-scores, half - 1)[:half]
                ids, scores = ids[best], scores[best]
            kept.append(ids[np.argsort(-scores)[:count]])
        return np.stack(kept)

    def bounds(self, hidden: Tensor, count: int) -> np.ndarray:
        """Upper bounds `(positions, count)` on scores of all but the first 1, 2, … `count` tokens, in mode "exact"."""
        white = self.whitened(hidden)
        logits = self.bit_logits(white)
        return self._bounds(self.scan.search(self.tables(white, logits), count), white, logits)

    def _bounds(self, found: Found, white: Tensor, logits: np.ndarray) -> np.ndarray:
        """Upper bounds `(positions, m)` on the scores of the tokens found, and of those after them."""
        every, logits = (white @ self.common).double().numpy(), logits.astype(np.float64)
        size = np.abs(logits).sum(1) + np.abs(every)
        added = every - logits.sum(1) / 2 + found.errors + self.numbers.error + FLOAT32 * size
        return np.asarray(found.scores + added[:, None])


def _sums(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sums `(m,)` of the entries of a table `(bytes, 256)` that rows `(m, bytes)` select."""
    entries = table.ravel().take(rows + np.arange(0, table.size, table.shape[1]))
    return np.einsum("ij->i", entries)  # half the time of sum(axis=1)


def block_norms(values: Tensor, blocks: int) -> Tensor:
    """Norms `(rows, blocks)` of values `(rows, coordinates)`, rounded up a little."""
    parts = torch.tensor_split(values, blocks, dim=1) if blocks else ()
    found = [part.double().norm(dim=1).float() * (1 + 1e-6) for part in parts]
    return torch.stack(found, dim=1) if found else values.new_zeros(len(values), 0)


def probes(weight: Tensor) -> Tensor:
    """Norms `(PROBES,)` of some rows of a head, by which it is recognised."""
    some = torch.linspace(0, len(weight) - 1, PROBES, dtype=torch.float32).long().to(weight.device)
    return weight.detach()[some].float().norm(dim=1).cpu()


def marks(weight: Tensor) -> Tensor:
    """A number per row of a head `(V,)`, float64: its product with a fixed random direction, which any change moves."""
    direction = torch.from_numpy(RandomBits(0).normal(1, weight.shape[1])[0])
    return torch.cat([rows.double() @ direction for rows in pieces(weight)])


def dtype_name(weight: Tensor) -> str:
    """The name of the dtype of a head's rows, as in `config.json`."""
    return str(weight.dtype).removeprefix("torch.")
