"""Nothing that is drawn at random is silently wrong, raises what is not ours, hangs, or resumes to other numbers."""

from __future__ import annotations

import pytest
from fuzzing import KINDS, bad, fuzz


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_end_is_a_good_one(kind, tmp_path):
    verdicts = fuzz(kind, tmp_path, KINDS[kind][1], seed=0)
    assert len(verdicts) == KINDS[kind][1]
    assert not bad(verdicts)
