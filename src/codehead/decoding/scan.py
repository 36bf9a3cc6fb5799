"""The k best tokens by scanning packed codewords, exactly: nothing is as wide as the vocabulary.

A scan ranks all tokens by scores that are rounded, with a known error, and gives the best of them. Those that may be
among the k best are scored exactly, in float64; where tokens that were not given might be too, more are taken, and at
last all are scored, some at a time. Equal scores are ordered by token id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from codehead.codes.lookup import bit_sums
from codehead.codes.packing import row_bytes
from codehead.codes.table import CodewordTable
from codehead.decoding import fast_scan
from codehead.decoding.corrections import Corrections
from codehead.decoding.decoders import DECODERS
from codehead.decoding.fast_scan import FastScan, Found, Numbers
from codehead.decoding.fitted import FittedDecoder
from codehead.decoding.precision import no_autocast, wide
from codehead.decoding.terms import Terms
from codehead.errors import ConfigurationError

IMPLEMENTATIONS = ("auto", "plain", "scan")
LEAST = 2**12
"""Tokens below which scoring all of them is as fast."""
MOST = 2**10
"""Tokens to be found, or positions at once, above which it is."""
FIRST = 64
"""Tokens taken at first, beyond k."""
MORE = 16
"""How many times as many are taken next, before all are scored."""
CHUNK = 2**14
"""Tokens that are worked on at a time."""
ROUNDING = 2.0**-23
"""Twice the relative error of a float32 operation."""


class Query(NamedTuple):
    """What positions ask of tokens: weights of their bits, 1 or 0, in float64."""

    bits: Tensor
    """`(positions, 8 · bytes)`: of the packed codewords, the signs and then the support."""
    extra: Tensor
    """`(positions, 8 · bytes)`: of the extra bits."""
    rows: Tensor
    """`(positions, K)`: added to the scores of listed tokens."""
    constant: Tensor
    """`(positions,)`: added to all scores."""
    extra_constant: Tensor
    """`(positions,)`: added to scores of tokens with extra bits."""

    def at(self, position: int) -> Query:
        """One position."""
        return Query(*(part[position : position + 1] for part in self))

    @classmethod
    def of(cls, terms: Terms, table: CodewordTable, corrections: Corrections | None, outputs: Tensor) -> Query:
        """From the form of a decoder, in float64, and the outputs `(positions, m + K)` beyond the n bit logits."""
        signed, support = terms.signed, terms.support
        planes = [2 * signed]
        constant = torch.zeros_like(signed[..., 0])
        if table.is_ternary:  # a symbol is twice the bit of its sign less that of its support
            planes.append((torch.zeros_like(signed) if support is None else support) - signed)
        else:
            constant = constant - signed.sum(-1)
        bits = torch.cat([_whole_bytes(weights) for weights in planes], dim=-1)
        length = 0 if corrections is None else corrections.num_bits
        extra, rows = outputs[..., :length], outputs[..., length:]
        return cls(bits, _whole_bytes(extra), rows, constant, -extra.sum(-1) / 2)


def _whole_bytes(weights: Tensor) -> Tensor:
    return F.pad(weights, (0, 8 * row_bytes(weights.shape[-1]) - weights.shape[-1]))


class _Scanner(Protocol):
    """Some tokens whose scores can be ranked roughly."""

    def search(self, weights: Tensor, constant: Tensor, count: int) -> Found:
        """The `count` best for weights `(positions, bits)` and what `(positions,)` is added to their sums."""
        ...


@final
class _Fast:
    """By FAISS, on the CPU."""

    def __init__(self, plane: Tensor, bias: Tensor | None) -> None:
        packed = plane.numpy()
        self.numbers = None if bias is None else Numbers.of(bias.numpy())
        self.scan = FastScan(packed if self.numbers is None else np.concatenate([packed, self.numbers.plane], axis=1))

    def search(self, weights: Tensor, constant: Tensor, count: int) -> Found:
        tables = fast_scan.bit_tables(weights.numpy())
        if self.numbers is not None:
            biases = np.broadcast_to(self.numbers.tables, (len(tables), *self.numbers.tables.shape))
            tables = np.concatenate([tables, biases], axis=1)
        ids, scores, errors = self.scan.search(tables, count)
        errors = errors + (0.0 if self.numbers is None else self.numbers.error)
        return Found(ids, scores + constant.numpy()[:, None], errors)


@final
class _Chunked:
    """By torch, on any device, in float32: some tokens at a time, of which the best are kept."""

    def __init__(self, plane: Tensor, bias: Tensor | None, scale: Tensor | None) -> None:
        self.plane, self.bias, self.scale = plane, bias, scale

    def search(self, weights: Tensor, constant: Tensor, count: int) -> Found:
        scores = weights.new_zeros(len(weights), 0, dtype=torch.float32)
        ids = torch.zeros_like(scores, dtype=torch.int64)
        for start in range(0, len(self.plane), CHUNK):
            found = self._scores(weights.float(), constant, slice(start, start + CHUNK))
            places = torch.arange(start, start + found.shape[1], device=ids.device).expand_as(found)
            scores, ids = torch.cat([scores, found], dim=1), torch.cat([ids, places], dim=1)
            scores, best = scores.topk(min(count, scores.shape[1]), dim=1)
            ids = ids.gather(1, best)
        return Found(ids.cpu().numpy(), scores.double().cpu().numpy(), self._errors(weights, constant))

    def _scores(self, weights: Tensor, constant: Tensor, some: slice) -> Tensor:
        scores = bit_sums(weights, self.plane[some]) + constant[:, None].float()
        if self.scale is not None:
            scores = scores * self.scale[some].float()
        return scores if self.bias is None else scores + self.bias[some].float()

    def _errors(self, weights: Tensor, constant: Tensor) -> np.ndarray:
        """As many roundings as there are additions, each of the sum of all magnitudes at most."""
        size = (weights.abs().sum(1) + constant.abs()).cpu().numpy()
        size = size * (1.0 if self.scale is None else float(self.scale.abs().max()))
        size = size + (0.0 if self.bias is None else float(self.bias.abs().max()))
        return np.asarray(ROUNDING * (weights.shape[1] + 4) * size)


class _Rough(NamedTuple):
    """The best tokens of a section by rounded scores."""

    ids: Tensor
    """`(positions, m)`."""
    scores: np.ndarray
    """`(positions, m)`, float64."""
    errors: np.ndarray
    """`(positions,)`: how far they, and those of tokens that are not among these, are off at most."""
    complete: bool
    """Whether these are all tokens of the section."""


class _Section(NamedTuple):
    """Tokens that are scored alike."""

    ids: Tensor | None
    """`(tokens,)`, ascending; None if these are all there are."""
    extra: bool
    """Whether they have extra bits."""
    listed: Tensor | None
    """`(tokens,)`: which rows are theirs; None if they have none."""
    scanner: _Scanner
    size: int

    def rough(self, query: Query, count: int) -> _Rough:
        """The `count` best tokens; those that have a row all, since it may add anything."""
        weights, constant = query.bits, query.constant
        if self.extra:
            weights, constant = torch.cat([weights, query.extra], dim=1), constant + query.extra_constant
        count = min(count, self.size) if self.listed is None else self.size
        found, scores, errors = self.scanner.search(weights, constant, count)
        places = torch.from_numpy(found).to(weights.device)
        if self.listed is not None:
            scores = scores + query.rows.gather(1, self.listed[places]).cpu().numpy()
        return _Rough(places if self.ids is None else self.ids[places], scores, errors, count == self.size)


@final
class Scan:
    """The tokens of a table, with what corrections add to them; `fast` chooses FAISS instead of torch."""

    def __init__(self, table: CodewordTable, corrections: Corrections | None = None, *, fast: bool = True) -> None:
        assert table.sign_plane is not None  # an implicit code has nothing to scan
        planes = [table.sign_plane] if table.support_plane is None else [table.sign_plane, table.support_plane]
        self.plane = planes[0] if len(planes) == 1 else torch.cat(planes, dim=1)
        self.num_classes, self.fast = table.num_classes, fast
        self.bias, self.scale = _number(corrections, "token_bias"), _number(corrections, "token_scale")
        refinement = None if corrections is None else corrections.refinement
        none = torch.empty(0, dtype=torch.int64, device=self.plane.device)
        self.extra_plane = None if refinement is None else refinement.table.sign_plane
        self.members = none if refinement is None else refinement.ids()
        shortlist = none if corrections is None else corrections.shortlist.long()
        self.listed, self.rows = shortlist.sort()
        self.sections = [self._section(*some) for some in self._parted()]

    def _parted(self) -> Iterator[tuple[Tensor | None, bool, bool]]:
        """The ids of tokens that are scored alike, and whether they have extra bits and rows."""
        if not len(self.members) and not len(self.listed):
            yield None, False, False
            return
        extra = torch.zeros(self.num_classes, dtype=torch.bool, device=self.plane.device)
        listed = extra.clone()
        extra[self.members], listed[self.listed] = True, True
        for has_extra, has_row in ((False, False), (True, False), (False, True), (True, True)):
            ids = ((extra == has_extra) & (listed == has_row)).nonzero().flatten()
            if len(ids):
                yield ids, has_extra, has_row

    def _section(self, ids: Tensor | None, has_extra: bool, has_row: bool) -> _Section:
        some = torch.arange(self.num_classes, device=self.plane.device) if ids is None else ids
        plane = self.plane if ids is None else self.plane[ids]
        if has_extra and self.extra_plane is not None:
            plane = torch.cat([plane, self.extra_plane[torch.searchsorted(self.members, some)]], dim=1)
        bias, scale = (None if values is None else values[some] for values in (self.bias, self.scale))
        listed = self.rows[torch.searchsorted(self.listed, some)] if has_row else None
        scanner = _Fast(plane, bias) if self.fast else _Chunked(plane, bias, scale)
        return _Section(ids, has_extra, listed, scanner, len(plane))

    def best(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        """Ids and scores, float64, `(positions, k)` of the best tokens."""
        found: list[tuple[Tensor, Tensor] | None] = [None] * len(query.bits)
        for count in (k + FIRST, MORE * (k + FIRST)):
            left = [position for position, best in enumerate(found) if best is None]
            if left and count * 4 <= self.num_classes:
                some = Query(*(part[left] for part in query)) if len(left) < len(found) else query
                for position, best in zip(left, self._decided(some, count, k), strict=True):
                    found[position] = best
        chosen = [self._by_scoring_all(query.at(i), k) if best is None else best for i, best in enumerate(found)]
        ids, scores = zip(*chosen, strict=True)
        return torch.stack(ids), torch.stack(scores)

    def _decided(self, query: Query, count: int, k: int) -> Iterator[tuple[Tensor, Tensor] | None]:
        """The best tokens of every position; None where tokens beyond the first `count` might be among them."""
        rough = [section.rough(query, count) for section in self.sections]
        for position in range(len(query.bits)):
            lower = np.concatenate([some.scores[position] - some.errors[position] for some in rough])
            upper = np.concatenate([some.scores[position] + some.errors[position] for some in rough])
            rest = max((some.scores[position, -1] + some.errors[position] for some in rough if not some.complete),
                       default=-np.inf)  # fmt: skip
            bar = np.partition(lower, len(lower) - k)[len(lower) - k]
            ids = torch.cat([some.ids[position] for some in rough])
            ids = ids[torch.from_numpy(upper >= bar).to(ids.device)]
            ids, scores = _in_order(ids, self.exact(query.at(position), ids), k)
            yield (ids, scores) if float(scores[-1]) > rest else None

    def exact(self, query: Query, ids: Tensor) -> Tensor:
        """Scores `(tokens,)` of some tokens at one position, in float64."""
        scores = _bits(self.plane[ids]) @ query.bits[0] + query.constant
        if self.extra_plane is not None:
            place, known = _find(self.members, ids)
            more = _bits(self.extra_plane[place[known]]) @ query.extra[0] + query.extra_constant
            scores[known] = scores[known] + more
        if self.scale is not None:
            scores = scores * self.scale[ids]
        if self.bias is not None:
            scores = scores + self.bias[ids]
        if len(self.listed):
            place, known = _find(self.listed, ids)
            scores[known] = scores[known] + query.rows[0, self.rows[place[known]]]
        return scores

    def _by_scoring_all(self, query: Query, k: int) -> tuple[Tensor, Tensor]:
        ids = torch.empty(0, dtype=torch.int64, device=self.plane.device)
        scores = query.bits.new_empty(0)
        for start in range(0, self.num_classes, CHUNK):
            some = torch.arange(start, min(start + CHUNK, self.num_classes), device=ids.device)
            ids, scores = torch.cat([ids, some]), torch.cat([scores, self.exact(query, some)])
            ids, scores = _in_order(ids, scores, k)
        return ids, scores


def _number(corrections: Corrections | None, name: str) -> Tensor | None:
    """What every token is added or multiplied by, `(V,)`, float64."""
    values = None if corrections is None else getattr(corrections, name)
    return None if values is None else values.detach().double()


def _bits(rows: Tensor) -> Tensor:
    """Packed rows `(tokens, bytes)` as 0 and 1, float64 `(tokens, 8 · bytes)`."""
    masks = 2 ** torch.arange(8, dtype=torch.uint8, device=rows.device)
    return ((rows.unsqueeze(-1) & masks) != 0).flatten(1).double()


def _find(known: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where ids stand among `known` ones, which ascend, and whether they are there."""
    place = torch.searchsorted(known, ids).clamp(max=max(len(known) - 1, 0))
    return place, known[place] == ids


def _in_order(ids: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best, equal ones by id."""
    order = ids.argsort()
    best = scores[order].sort(descending=True, stable=True).indices[:k]
    return ids[order[best]], scores[order[best]]


class Choice(NamedTuple):
    """How the best tokens are found, and why so."""

    impl: str
    """"plain" scores all tokens; "scan" only those that may be the best, by FAISS or by torch."""
    why: str
    fast: bool = False
    """Whether it is FAISS that scans."""


def refusal(table: CodewordTable, decoder: str, corrections: Corrections | None = None) -> str | None:
    """Why tokens cannot be scanned; None if they can."""
    if table.is_implicit:
        return "the code one_vs_all has no codewords: its bit logits are the scores"
    part = DECODERS.get(decoder)
    if isinstance(part, FittedDecoder) or not isinstance(part(torch.zeros(1, 1)), Terms):
        return f"the scores of decoder {decoder!r} are no sums over bits; choose decoder='likelihood'"
    if corrections is not None and corrections.split:
        return "with shortlist_split a score depends on those of all tokens"
    return None


def choose(
    impl: str, table: CodewordTable, decoder: str, corrections: Corrections | None = None, *, k: int = 1, size: int = 1
) -> Choice:
    """What `impl` comes to for k tokens at so many positions (`size`).

    Raises:
        ConfigurationError: `impl` is unknown, or "scan" where that is impossible.
    """
    if impl not in IMPLEMENTATIONS:
        raise ConfigurationError(f"unknown impl {impl!r}; choose one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "plain":
        return Choice("plain", "it was asked for")
    reason = refusal(table, decoder, corrections)
    if impl == "scan" and reason is not None:
        raise ConfigurationError(f"impl='scan' is not possible: {reason}; or omit impl")
    if reason is not None:
        return Choice("plain", reason)
    assert table.sign_plane is not None
    device = table.sign_plane.device.type
    scaled = corrections is not None and corrections.token_scale is not None
    slow = (
        f"the code is on the device {device!r}, where FAISS does not run" if device != "cpu"
        else "FAISS multiplies no score by a scale per token" if scaled
        else "FAISS is not installed (pip install 'codehead[fast]')" if not fast_scan.available()
        else None
    )  # fmt: skip
    if impl == "scan":
        return Choice("scan", slow or "it was asked for", slow is None)
    if slow is not None:
        return Choice("plain", slow)
    if table.num_classes < LEAST:
        return Choice("plain", f"{table.num_classes:,} tokens are scored as fast as scanned")
    if max(k, size) > MOST:
        return Choice("plain", f"{k:,} tokens at {size:,} positions are found as fast by scoring all")
    return Choice("scan", f"{table.num_classes:,} tokens are scanned faster by FAISS than scored", True)


_KEPT: WeakKeyDictionary[CodewordTable, tuple[tuple[object, ...], Scan]] = WeakKeyDictionary()
"""The last scan of a table, and what it was made from."""


def scan_of(table: CodewordTable, corrections: Corrections | None, fast: bool) -> Scan:
    """The scan of a table and corrections; the same until one of their tensors changes."""
    tensors = [*table.buffers(), *([] if corrections is None else [*corrections.parameters(), *corrections.buffers()])]
    made_from = (fast, *((id(some), None if some.is_inference() else some._version) for some in tensors))
    kept = _KEPT.get(table)
    if kept is None or kept[0][0] != made_from:
        with torch.inference_mode(False), torch.no_grad():
            kept = ((made_from, tensors), Scan(table, corrections, fast=fast))  # tensors that live keep their ids
        _KEPT[table] = kept
    return kept[1]


@torch.no_grad()
def best_tokens(
    outputs: Tensor, table: CodewordTable, decoder: str, k: int, corrections: Corrections | None = None, *, fast: bool
) -> tuple[Tensor, Tensor]:
    """Ids and scores `(…, k)` of the best tokens for outputs `(…, n)`, with corrections `(…, n + m + K)`.

    Exact, equal scores by id. Outputs must be finite.
    """
    flat = outputs.reshape(-1, outputs.shape[-1]).double()
    with no_autocast(outputs.device.type):
        form = DECODERS.get(decoder)(flat[:, : table.length])
        assert isinstance(form, Terms)
        query = Query.of(form, table, corrections, flat[:, table.length :])
        ids, scores = scan_of(table, corrections, fast).best(query, k)
        shared = form.shared(table)
    scores = scores if shared is None else scores + shared
    shape = (*outputs.shape[:-1], k)
    return ids.view(shape), scores.view(shape).to(wide(outputs[..., :0]).dtype)
