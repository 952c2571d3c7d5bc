"""What becomes of the features stage when a node that works on it is lost; Ray is played by a script."""

import pytest
import ray.exceptions

from raysweep.engine import features
from raysweep.features.compute import Progress


class Task:
    """Yields what it is told to, as the generator of a remote task does; an error is raised by `ray.get`."""

    def __init__(self, *results):
        self._results = iter(results)

    def __next__(self):
        return next(self._results)


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    def get(result):
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(features.ray, "wait", lambda waiting, num_returns: (waiting[:1], waiting[1:]))
    monkeypatch.setattr(features.ray, "get", get)


@pytest.mark.parametrize("lost", [ray.exceptions.TaskUnschedulableError("dead"), ray.exceptions.WorkerCrashedError()])
def test_a_lost_node_has_made_nothing_and_the_others_go_on(lost):
    half, whole = Progress(5, 10, 100), Progress(10, 10, 100)
    found = list(features._as_they_come({Task(half, lost): "gone", Task(half, whole): "there"}))
    assert dict(found) == {"gone": Progress(0, 0, 0), "there": whole}


def test_another_error_is_raised():
    with pytest.raises(ValueError, match="mistake"):
        list(features._as_they_come({Task(ValueError("a mistake")): "there"}))


def test_a_full_disk_is_a_sentence():
    full = OSError(28, "No space left on device")
    assert list(features._as_they_come({Task(full): "there"})) == [("there", full)]
    assert features._problem("resnet18", full) == {
        "problem": "features of resnet18 are not stored: No space left on device", "overflow": False,
    }  # fmt: skip
