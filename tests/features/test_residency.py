"""The budget of features in a GPU's memory."""

import pytest
import torch

from raysweep.features import residency
from raysweep.features.residency import Residency, room

GIB = 2**30


@pytest.mark.parametrize(
    ("share", "used", "free", "expected"),
    [
        (1.0, 0, 80 * GIB, 40 * GIB),
        (0.25, 0, 80 * GIB, 10 * GIB),
        (0.25, 10 * GIB, 70 * GIB, 0),
        (0.25, 4 * GIB, 76 * GIB, 6 * GIB),
        (1.0, 0, 10 * GIB, 5 * GIB),  # another program has the rest
        (0.5, 30 * GIB, 10 * GIB, 0),
    ],
)
def test_room_by_hand(share, used, free, expected):
    assert room(80 * GIB, free, share, used) == expected


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 7])
def test_lanes_never_take_more_than_half_of_their_gpu(lanes):
    """Whatever each of them sees as free, and in whatever pieces it asks."""
    total = 0
    for _ in range(lanes):
        used = 0
        for piece in (3 * GIB, 20 * GIB, GIB, GIB, GIB):
            used += piece if piece <= room(80 * GIB, 80 * GIB, 1 / lanes, used) else 0
        total += used
    assert total <= 40 * GIB


def test_what_is_taken_counts(monkeypatch):
    """A GPU of 80 GiB, of which the lane has a quarter: 10 GiB."""
    monkeypatch.setattr(residency.torch.cuda, "mem_get_info", lambda device: (80 * GIB, 80 * GIB))
    lane = Residency(torch.device("cuda"), 0.25)
    asked = [6 * GIB, 5 * GIB, 4 * GIB, 1]
    assert [lane.takes(nbytes) for nbytes in asked] == [True, False, True, False]
    assert lane.used == 10 * GIB


def test_a_cpu_keeps_nothing():
    lane = Residency(torch.device("cpu"))
    assert not lane.takes(1)
    assert lane.used == 0
