"""What screening would gain: both ways are timed, and nothing is claimed without FAISS."""

from __future__ import annotations

import pytest

from codehead.decoding import fast_scan
from codehead.errors import ConfigurationError
from codehead.screening.build import Gain, gain


def test_both_heads_are_timed():
    found = gain(24, 3000, bits=64, candidates=16)
    assert found.dense > 0 < found.screened


def test_a_verdict_tells_what_was_timed_and_whether_it_pays():
    found, other = Gain(576, 49_152, 2, 4.0, 2.0), Gain(576, 49_152, 2, 2.0, 4.0)
    assert found.ratio == 2
    assert found.pays and not other.pays
    assert "H = 576, V = 49,152" in found.verdict and "2 ms screened and 4 ms as it is" in found.verdict
    assert "gains nothing here" in other.verdict


def test_without_faiss_there_is_nothing_to_time(monkeypatch):
    monkeypatch.setattr(fast_scan, "available", lambda: False)
    with pytest.raises(ConfigurationError, match="pip install"):
        gain(8, 100)
