"""Which epoch a trial counts with, and how long the final fit is."""

import pytest

from raysweep.sweep.choice import counted, epochs_by_phase
from tests.sweep.sample_rows import epoch_row


def losses(*values):
    return [epoch_row(epoch=epoch, val_loss=value) for epoch, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("values", "last", "best"),
    [
        ([3.0, 2.0, 1.0], 3, 3),
        ([3.0, 1.0, 2.0], 3, 2),
        ([1.0, 1.0, 1.0], 3, 1),
        ([None, 2.0, 3.0], 3, 2),
        ([2.0, None, 1.5], 3, 3),
        ([2.0], 1, 1),
    ],
)
def test_counted(values, last, best):
    rows = losses(*values)
    assert counted(rows, "last") == rows[:last]
    assert counted(rows, "best_loss") == rows[:best]


@pytest.mark.parametrize(
    ("phases", "epochs"),
    [
        ([1], (1,)),
        ([1, 1, 1, 1], (4,)),
        ([1, 1, 2], (2, 1)),
        ([1, 1, 2, 2, 2, 3], (2, 3, 1)),
        ([1, 2, 2, 3, 3], (1, 2, 2)),  # the first two ran out of patience
    ],
)
def test_epochs_by_phase(phases, epochs):
    rows = [epoch_row(epoch=epoch, phase=phase) for epoch, phase in enumerate(phases, start=1)]
    assert epochs_by_phase(rows) == epochs
    assert sum(epochs) == len(rows)
