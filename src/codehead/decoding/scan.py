"""The exact k best tokens by scanning packed codewords, without tensors as wide as the vocabulary.

A scan ranks all tokens by rounded scores with a known error, and returns the best. Those that may be among the k best
are then scored exactly, in float64. If tokens that were not returned might be among them, more are taken, and finally
all are scored, some at a time. Equal scores are ordered by token id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from codehead.codes.packing import LEAST_SCANNED
from codehead.codes.table import CodewordTable, bit_sums
from codehead.decoding import fast_scan
from codehead.decoding.decoders import DECODERS, Decoder, FittedDecoder, Terms
from codehead.decoding.extras import Corrections
from codehead.decoding.fast_scan import FastScan, Found, Numbers, bit_tables, whole_bytes
from codehead.decoding.numerics import no_autocast, wide
from codehead.errors import ConfigurationError

FIRST = 64
"""Tokens taken in the first round, beyond k."""
MORE = 16
"""How many times as many are taken in the second round, before all are scored."""
CHUNK = 2**13
"""Tokens processed at a time."""
ROUNDING = 2.0**-23
"""Twice the relative error of a float32 operation."""


class Query(NamedTuple):
    """The weights that positions give to the bits (1 or 0) of tokens, in float64."""

    bits: np.ndarray
    """`(positions, 8 · bytes)`: weights of packed codewords, the signs and then the support."""
    extra: np.ndarray
    """`(positions, 8 · bytes)`: weights of the extra bits."""
    rows: np.ndarray
    """`(positions, K)`: added to the scores of tokens with dense rows."""
    constant: np.ndarray
    """`(positions,)`: added to all scores."""
    extra_constant: np.ndarray
    """`(positions,)`: added to scores of tokens with extra bits."""

    def at(self, positions: int | list[int]) -> Query:
        """The query of some positions, or of one."""
        return Query(*(part[positions] for part in self))

    @classmethod
    def of(cls, terms: Terms, table: CodewordTable, corrections: Corrections | None, outputs: Tensor) -> Query:
        """From the form of a decoder, in float64, and the outputs `(positions, m + K)` beyond the n bit logits."""
        signed = terms.signed.cpu().numpy()
        planes, constant = [2 * signed], np.zeros(len(signed))
        if table.is_ternary:  # a symbol is twice the bit of its sign less that of its support
            planes.append((0.0 if terms.support is None else terms.support.cpu().numpy()) - signed)
        else:
            constant -= signed.sum(-1)
        length = 0 if corrections is None else corrections.num_bits
        extra, rows = np.split(outputs.cpu().numpy(), [length], axis=1)
        bits = np.concatenate([whole_bytes(weights) for weights in planes], axis=1)
        return cls(bits, whole_bytes(extra), rows, constant, -extra.sum(-1) / 2)


class _Scanner(Protocol):
    """Ranks some tokens by approximate scores."""

    def search(self, weights: np.ndarray, constant: np.ndarray, count: int) -> Found:
        """The `count` best for weights `(positions, bits)`, with a constant `(positions,)` added to their sums."""
        ...


@final
class _Fast:
    """A scan by FAISS, on the CPU."""

    def __init__(self, plane: np.ndarray, bias: np.ndarray | None) -> None:
        self.numbers = None if bias is None else Numbers.of(bias)
        self.scan = FastScan(plane if self.numbers is None else np.concatenate([plane, self.numbers.plane], axis=1))

    def search(self, weights: np.ndarray, constant: np.ndarray, count: int) -> Found:
        tables = bit_tables(weights)
        if self.numbers is not None:
            tables = self.numbers.beside(tables)
        ids, scores, errors = self.scan.search(tables, count)
        return Found(ids, scores + constant[:, None], errors + (0.0 if self.numbers is None else self.numbers.error))


@final
class _Chunked:
    """A scan by torch, on any device, in float32: some tokens at a time, keeping the best."""

    def __init__(self, plane: np.ndarray, bias: np.ndarray | None, device: Any) -> None:
        self.plane = torch.from_numpy(plane).to(device)
        self.bias = None if bias is None else torch.from_numpy(bias).to(device, torch.float32)

    def search(self, weights: np.ndarray, constant: np.ndarray, count: int) -> Found:
        own, added = (torch.from_numpy(part).to(self.plane.device, torch.float32) for part in (weights, constant))
        scores, ids = own[:, :0], own[:, :0].long()
        for start in range(0, len(self.plane), CHUNK):
            found = self._scores(own, added, slice(start, start + CHUNK))
            places = torch.arange(start, start + found.shape[1], device=ids.device).expand_as(found)
            scores, ids = torch.cat([scores, found], dim=1), torch.cat([ids, places], dim=1)
            scores, best = scores.topk(min(count, scores.shape[1]), dim=1)
            ids = ids.gather(1, best)
        return Found(ids.cpu().numpy(), scores.double().cpu().numpy(), self._errors(weights, constant))

    def _scores(self, weights: Tensor, constant: Tensor, some: slice) -> Tensor:
        scores = bit_sums(weights, self.plane[some]) + constant[:, None]
        return scores if self.bias is None else scores + self.bias[some]

    def _errors(self, weights: np.ndarray, constant: np.ndarray) -> np.ndarray:
        """One rounding error per addition, each relative to at most the sum of all magnitudes."""
        size = np.abs(weights).sum(1) + np.abs(constant)
        size = size + (0.0 if self.bias is None else float(self.bias.abs().max()))
        return np.asarray(ROUNDING * (weights.shape[1] + 4) * size)


class _Section(NamedTuple):
    """Tokens that all have, or all lack, extra bits and dense rows."""

    ids: np.ndarray
    """`(tokens,)`, ascending."""
    extra: bool
    """Whether they have extra bits."""
    listed: np.ndarray | None
    """`(tokens,)`: the index of each token's dense row; None if they have none."""
    scanner: _Scanner

    def search(self, query: Query, count: int) -> Found:
        """The `count` best tokens; all tokens if they have dense rows, which may add anything."""
        weights, constant = query.bits, query.constant
        if self.extra:
            weights, constant = np.concatenate([weights, query.extra], axis=1), constant + query.extra_constant
        places, scores, errors = self.scanner.search(weights, constant, self.given(count))
        if self.listed is not None:
            scores = scores + np.take_along_axis(query.rows, self.listed[places], axis=1)
        return Found(self.ids[places], scores, errors)

    def given(self, count: int) -> int:
        """How many tokens `search` returns for this `count`."""
        return min(count, len(self.ids)) if self.listed is None else len(self.ids)


@final
class Scan:
    """Scans the tokens of a table, with their corrections; `fast` chooses FAISS instead of torch."""

    def __init__(self, table: CodewordTable, corrections: Corrections | None = None, *, fast: bool = True) -> None:
        assert table.sign_plane is not None  # an implicit code has nothing to scan
        planes = [plane.cpu().numpy() for plane in (table.sign_plane, table.support_plane) if plane is not None]
        self.plane = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=1)
        self.num_classes, self.fast, self.device = table.num_classes, fast, table.sign_plane.device
        bias = None if corrections is None else corrections.token_bias
        self.bias = None if bias is None else bias.detach().double().cpu().numpy()
        refinement = None if corrections is None else corrections.refinement
        self.members, self.extra_plane = np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.uint8)
        if refinement is not None and refinement.table.sign_plane is not None:
            self.members, self.extra_plane = (x.cpu().numpy() for x in (refinement.ids(), refinement.table.sign_plane))
        shortlist = self.members[:0] if corrections is None else corrections.shortlist.long().cpu().numpy()
        self.rows = np.argsort(shortlist)
        self.listed = shortlist[self.rows]
        self.sections = [self._section(*some) for some in self._parted()]

    def _parted(self) -> Iterator[tuple[np.ndarray, bool, bool]]:
        """The ids of the tokens of each section, and whether they have extra bits and dense rows."""
        extra, listed = np.zeros((2, self.num_classes), dtype=bool)
        extra[self.members], listed[self.listed] = True, True
        for has_extra, has_row in ((False, False), (True, False), (False, True), (True, True)):
            ids = np.flatnonzero((extra == has_extra) & (listed == has_row))
            if len(ids):
                yield ids, has_extra, has_row

    def _section(self, ids: np.ndarray, has_extra: bool, has_row: bool) -> _Section:
        plane = self.plane[ids]
        if has_extra:
            plane = np.concatenate([plane, self.extra_plane[np.searchsorted(self.members, ids)]], axis=1)
        bias = None if self.bias is None else self.bias[ids]
        listed = self.rows[np.searchsorted(self.listed, ids)] if has_row else None
        scanner = _Fast(plane, bias) if self.fast else _Chunked(plane, bias, self.device)
        return _Section(ids, has_extra, listed, scanner)

    def best(self, query: Query, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores, float64, `(positions, k)` of the best tokens."""
        found: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(query.bits)
        for count in (k + FIRST, MORE * (k + FIRST)):
            left = [position for position, best in enumerate(found) if best is None]
            if left and count * 4 <= self.num_classes:
                some = query.at(left) if len(left) < len(found) else query
                for position, best in zip(left, self._decided(some, count, k), strict=True):
                    found[position] = best
        chosen = [self._by_scoring_all(query.at(i), k) if best is None else best for i, best in enumerate(found)]
        ids, scores = zip(*chosen, strict=True)
        return np.stack(ids), np.stack(scores)

    def _decided(self, query: Query, count: int, k: int) -> Iterator[tuple[np.ndarray, np.ndarray] | None]:
        """The best tokens of every position; None where tokens beyond the first `count` might be among them."""
        parts = [section.search(query, count) for section in self.sections]
        incomplete = [some.given(count) < len(some.ids) for some in self.sections]
        ids = np.concatenate([part.ids for part in parts], axis=1)
        lower = np.concatenate([part.scores - part.errors[:, None] for part in parts], axis=1)
        upper = np.concatenate([part.scores + part.errors[:, None] for part in parts], axis=1)
        rest = [part.scores[:, -1] + part.errors for part, more in zip(parts, incomplete, strict=True) if more]
        bars = np.partition(lower, lower.shape[1] - k, axis=1)[:, lower.shape[1] - k]
        for position, bar in enumerate(bars):
            some = ids[position, upper[position] >= bar]
            best, scores = _in_order(some, self.exact(query.at(position), some), k)
            yield (best, scores) if all(scores[-1] > other[position] for other in rest) else None

    def exact(self, query: Query, ids: np.ndarray) -> np.ndarray:
        """Scores `(tokens,)` of some tokens for the query of one position, in float64."""
        scores = _sums(self.plane[ids], query.bits) + query.constant
        if len(self.members):
            place, known = _find(self.members, ids)
            scores[known] += _sums(self.extra_plane[place], query.extra) + query.extra_constant
        if self.bias is not None:
            scores += self.bias[ids]
        if len(self.listed):
            place, known = _find(self.listed, ids)
            scores[known] += query.rows[self.rows[place]]
        return np.asarray(scores)

    def _by_scoring_all(self, query: Query, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids, scores = np.empty(0, dtype=np.int64), np.empty(0)
        for start in range(0, self.num_classes, CHUNK):
            some = np.arange(start, min(start + CHUNK, self.num_classes))
            ids, scores = np.concatenate([ids, some]), np.concatenate([scores, self.exact(query, some)])
            ids, scores = _in_order(ids, scores, k)
        return ids, scores


def _sums(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums `(tokens,)` of weights `(8 · bytes,)` where packed rows `(tokens, bytes)` have a 1; equal for equal rows.

    Not a matrix product, which may add up different rows in different orders.
    """
    bits = np.unpackbits(rows, axis=1, bitorder="little")
    return np.asarray((bits * weights).sum(axis=1))


def _find(known: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places in `known` (ascending) of those ids that occur there, and a mask of these ids."""
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    found = known[place] == ids
    return place[found], found


def _in_order(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best, with equal scores ordered by id."""
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


IMPLEMENTATIONS = ("auto", "plain", "scan")
MOST = 2**10
"""The most tokens to find, or positions of a packed code, in a scan: beyond, scoring all tokens is as fast."""
AROUND = 1e6
"""Time to scan a position, beyond reading codewords, as bytes that could be read meanwhile."""
LISTED = 1400
"""The same for each token with a dense row, since all of these are ranked."""
SHARED = 8
"""Positions that a matrix can be multiplied with in the time it takes to read it."""
FLOAT = 32
"""Bits of a symbol in the matrix that a product reads."""
WIDE = 32
"""Bytes moved per score in a product: it is written and read several times."""


class Choice(NamedTuple):
    """How the best tokens are found, and why."""

    impl: str
    """"plain" scores all tokens; "scan" only those that may be the best, by FAISS or by torch."""
    why: str
    fast: bool = False
    """Whether FAISS does the scan."""


def refusal(table: CodewordTable, decoder: str) -> str | None:
    """Why tokens cannot be scanned; None if they can."""
    if table.is_implicit:
        return "the code one_vs_all has no codewords: its bit logits are the scores"
    if not _adds_up(DECODERS.get(decoder), table.length):
        return f"the scores of decoder {decoder!r} are not sums over bits; choose decoder='likelihood'"
    return None


def _adds_up(part: Decoder, length: int) -> bool:
    """Whether the scores of a decoder are sums over bits."""
    return not isinstance(part, FittedDecoder) and isinstance(part(torch.zeros(1, length)), Terms)


def choose(
    impl: str, table: CodewordTable, decoder: str, corrections: Corrections | None = None, *, k: int = 1, size: int = 1
) -> Choice:
    """What `impl` means for k tokens at `size` positions.

    Raises:
        ConfigurationError: `impl` is unknown, or is "scan" where that is impossible.
    """
    if impl not in IMPLEMENTATIONS:
        raise ConfigurationError(f"unknown impl {impl!r}; choose one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "plain":
        return Choice("plain", "it was asked for")
    reason = refusal(table, decoder)
    if impl == "scan" and reason is not None:
        raise ConfigurationError(f"impl='scan' is not possible: {reason}; or omit impl")
    if reason is not None:
        return Choice("plain", reason)
    assert table.sign_plane is not None
    device = table.sign_plane.device.type
    slow = (
        f"the code is on the device {device!r}, where FAISS does not run" if device != "cpu"
        else "FAISS is not installed (pip install 'codehead[fast]')" if not fast_scan.available()
        else None
    )  # fmt: skip
    if impl == "scan":
        return Choice("scan", slow or "it was asked for", slow is None)
    if slow is not None:
        return Choice("plain", slow)
    if table.num_classes < LEAST_SCANNED:
        return Choice("plain", f"{table.num_classes:,} tokens are scored as fast as scanned")
    if k > MOST or not pays(table, corrections, size):
        return Choice("plain", f"{k:,} tokens at {size:,} positions are found as fast by scoring all")
    return Choice("scan", f"{table.num_classes:,} tokens are scanned faster by FAISS than scored", True)


def pays(table: CodewordTable, corrections: Corrections | None, size: int) -> bool:
    """Whether scanning `size` positions is faster than multiplying them by all codewords, judged by the bytes read.

    Each position is scanned separately; a product reads the codewords, as float32, once for all positions.
    """
    if table.packed:  # no reading is shared by positions
        return size <= MOST
    refinement = None if corrections is None else corrections.refinement
    tables = [table] if refinement is None else [table, refinement.table]
    planes = [plane for some in tables for plane in (some.sign_plane, some.support_plane) if plane is not None]
    packed, listed = sum(plane.nbytes for plane in planes), 0 if corrections is None else corrections.num_rows
    scores = WIDE * size * table.num_classes
    return size * (packed + LISTED * listed + AROUND) < FLOAT * packed * max(1, size / SHARED) + scores


_KEPT: WeakKeyDictionary[CodewordTable, tuple[tuple[object, ...], Scan]] = WeakKeyDictionary()
"""The last scan of a table, and what it was made from."""


def scan_of(table: CodewordTable, corrections: Corrections | None, fast: bool) -> Scan:
    """The scan of a table and corrections; the same until one of their tensors changes."""
    tensors = _tensors(table, corrections)
    made_from = (fast, *((id(some), None if some.is_inference() else some._version) for some in tensors))
    kept = _KEPT.get(table)
    if kept is None or kept[0][0] != made_from:
        with torch.inference_mode(False), torch.no_grad():
            kept = ((made_from, tensors), Scan(table, corrections, fast=fast))  # tensors that stay alive keep their ids
        _KEPT[table] = kept
    return kept[1]


def _tensors(table: CodewordTable, corrections: Corrections | None) -> list[Tensor]:
    """All tensors that a scan is made from; listing them through modules would take as long as a FAISS scan."""
    found = [table.sign_plane, table.support_plane]
    if corrections is not None:
        found += [corrections.token_bias, corrections.shortlist]
        refinement = corrections.refinement
        found += [] if refinement is None else [refinement.members, refinement.table.sign_plane]
    return [tensor for tensor in found if tensor is not None]


@torch.no_grad()
def best_tokens(
    outputs: Tensor, table: CodewordTable, decoder: str, k: int, corrections: Corrections | None = None, *, fast: bool
) -> tuple[Tensor, Tensor]:
    """Ids and scores `(…, k)` of the best tokens for outputs `(…, n)`, with corrections `(…, n + m + K)`.

    Exact; equal scores are ordered by id. Outputs must be finite.
    """
    flat = outputs.reshape(-1, outputs.shape[-1]).double()
    with no_autocast(outputs.device.type):
        part = DECODERS.get(decoder)
        assert not isinstance(part, FittedDecoder)  # `refusal` has checked it
        form = part(flat[:, : table.length])
        assert isinstance(form, Terms)
        query = Query.of(form, table, corrections, flat[:, table.length :])
        found = scan_of(table, corrections, fast).best(query, k)
        shared = form.shared(table)
    ids, scores = (torch.from_numpy(part).to(outputs.device) for part in found)
    scores = scores if shared is None else scores + shared
    shape = (*outputs.shape[:-1], k)
    return ids.view(shape), scores.view(shape).to(wide(outputs[..., :0]).dtype)
