"""What screening would gain: both ways are timed, and nothing is claimed without FAISS."""

from __future__ import annotations

import pytest

from codehead.decoding import fast_scan
from codehead.errors import ConfigurationError
from codehead.screening.gain import Gain, gain


def test_both_heads_are_timed():
    found = gain(24, 3000, bits=64, candidates=16)
    assert found.dense > 0 < found.screened


def test_a_gain_is_a_ratio_above_one():
    assert Gain(4.0, 2.0).ratio == 2
    assert Gain(4.0, 2.0).pays and not Gain(2.0, 4.0).pays


def test_without_faiss_there_is_nothing_to_time(monkeypatch):
    monkeypatch.setattr(fast_scan, "available", lambda: False)
    with pytest.raises(ConfigurationError, match="pip install"):
        gain(8, 100)
