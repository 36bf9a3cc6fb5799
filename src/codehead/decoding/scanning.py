"""When tokens are scanned instead of scored one and all, and the way from outputs of a head to the best of them."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from codehead.codes.table import CodewordTable
from codehead.decoding import fast_scan
from codehead.decoding.decoders import DECODERS, FittedDecoder, Terms
from codehead.decoding.extras import Corrections
from codehead.decoding.numerics import no_autocast, wide
from codehead.decoding.scan import Query, Scan
from codehead.errors import ConfigurationError

IMPLEMENTATIONS = ("auto", "plain", "scan")
LEAST = 2**12
"""Tokens below which scoring all of them is as fast."""
MOST = 2**10
"""Tokens to be found, or positions at once, above which it is."""


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
    slow = (
        f"the code is on the device {device!r}, where FAISS does not run" if device != "cpu"
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
        part = DECODERS.get(decoder)
        assert not isinstance(part, FittedDecoder)  # `refusal` has seen to it
        form = part(flat[:, : table.length])
        assert isinstance(form, Terms)
        query = Query.of(form, table, corrections, flat[:, table.length :])
        found = scan_of(table, corrections, fast).best(query, k)
        shared = form.shared(table)
    ids, scores = (torch.from_numpy(part).to(outputs.device) for part in found)
    scores = scores if shared is None else scores + shared
    shape = (*outputs.shape[:-1], k)
    return ids.view(shape), scores.view(shape).to(wide(outputs[..., :0]).dtype)
