"""Check bits: columns computed from the others, so that wrong bits can be told from right ones.

With −1 for 0 and +1 for 1 a check bit is the sum, modulo 2, of some bits of its row. Classes that differ
in few bits then differ in some of the check bits too.
"""

from __future__ import annotations

import numpy as np

from codehead.codes import bch
from codehead.codes.arrays import Bytes
from codehead.codes.checks import column_faults, enough_binary_columns
from codehead.codes.codebook import Codebook, PackedCodebook
from codehead.codes.packing import CHUNK_SYMBOLS, pack_bits, unpack_bits
from codehead.codes.random_bits import RandomBits
from codehead.errors import CodebookError, ConfigurationError
from codehead.registry import did_you_mean

KINDS = ("random", "bch")
"""Where the check bits come from."""

STREAM = 1
"""The random stream of the checks: independent of the bits of the design, which have the same seed."""

MAX_REDRAWS = 100
"""Rounds in which random checks that repeat a column are drawn again before they count as impossible."""


def with_parity(codebook: Codebook, parity: int, kind: str, seed: int, good_columns: bool) -> PackedCodebook:
    """The codebook with `parity` check bits appended.

    "random": each is the parity of a random half of the bits. "bch": they extend the row to a codeword of
    a BCH code, shortened to this length, so that distinct rows differ in at least its distance 2t + 1;
    only some numbers of check bits exist. If the columns were promised to be good and enough different
    ones exist, so are these: random checks that repeat a column are drawn again.

    Raises:
        ConfigurationError: the kind is unknown, or has no code with so many check bits.
        CodebookError: the code is ternary or implicit, or allows no further good columns.

    """
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS)
        raise ConfigurationError(f"unknown parity_kind {kind!r}{hint}. Known: {', '.join(KINDS)}")
    if not isinstance(codebook, PackedCodebook):
        message = f"parity={parity} is not possible: {codebook.design} is never written out, so that nothing could "
        raise CodebookError(f"{message}be appended to it; choose another design")
    if codebook.is_ternary:
        message = f"parity={parity} is not possible: {codebook.design} is a ternary code, and the parity of bits is "
        raise CodebookError(f"{message}not defined where one of them is 0; choose a binary design")
    good_columns = good_columns and enough_binary_columns(codebook.num_classes, codebook.length + parity)
    plane = _bch(codebook, parity) if kind == "bch" else _random(codebook, parity, seed, good_columns)
    length = codebook.length + parity
    if good_columns and len(column_faults(plane, None, length).columns):
        message = f"parity={parity}: {parity} check bits of kind {kind!r} repeat columns of these {codebook.length} "
        raise CodebookError(f"{message}bits for {codebook.num_classes} classes; ask for fewer, or for more bits")
    return PackedCodebook(
        num_classes=codebook.num_classes,
        length=length,
        design=codebook.design,
        seed=seed if kind == "random" else codebook.seed,
        params={**codebook.params, "parity": parity, "parity_kind": kind},
        sign_plane=plane,
    )


def _bch(codebook: PackedCodebook, parity: int) -> Bytes:
    return _appended(codebook, bch.check_matrix(codebook.length, bch.choose(codebook.length, parity)))


def _random(codebook: PackedCodebook, parity: int, seed: int, good_columns: bool) -> Bytes:
    """The wider plane (V, bytes), with good columns if such were found."""
    length, source = codebook.length, RandomBits(seed, STREAM)
    checks = unpack_bits(source.plane(parity, length), length).T
    plane = _appended(codebook, checks)
    for _ in range(MAX_REDRAWS if good_columns else 0):
        faulty = column_faults(plane, None, length + parity).columns
        if not len(faulty):
            break
        checks[:, faulty - length] = unpack_bits(source.plane(len(faulty), length), length).T
        plane = _appended(codebook, checks)
    return plane


def _appended(codebook: PackedCodebook, checks: Bytes) -> Bytes:
    """The plane (V, bytes) of the codebook's bits and their sums modulo 2 by `checks` (length, parity)."""
    step = max(CHUNK_SYMBOLS // sum(checks.shape), 1)
    parts = []
    for start in range(0, codebook.num_classes, step):
        bits = unpack_bits(codebook.sign_plane[start : start + step], codebook.length)
        sums = bits.astype(np.float32) @ checks.astype(np.float32)  # exact: counts far below 2^24
        parts.append(pack_bits(np.concatenate([bits, sums.astype(np.int64) & 1], axis=1)))
    return np.concatenate(parts)
