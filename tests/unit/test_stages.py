"""Results of stages, and room for what they fill."""

from __future__ import annotations

import torch

from codehead.training.loop import Stages


def test_room_lies_in_a_file_that_goes_with_the_stages(tmp_path):
    stages = Stages(tmp_path / "kept")
    room = stages.room("hidden", (3, 5), torch.bfloat16)
    room[:] = torch.arange(15, dtype=torch.bfloat16).view(3, 5)
    (file,) = stages.path.iterdir()
    assert file.stat().st_size == room.nbytes
    again = torch.from_file(str(file), size=15, dtype=torch.bfloat16).view(3, 5)
    assert torch.equal(again, room)
    stages.remove()
    assert not stages.path.exists()


def test_room_where_nothing_is_kept_is_memory():
    assert Stages().room("hidden", (2, 3), torch.float64).shape == (2, 3)
