"""What is fetched ahead: everything once, in order, and nothing too early on a CPU."""

import pytest
import torch

from raysweep.data.prefetch import moved, prefetched
from tests.devices import DEVICES


@pytest.mark.parametrize("device", DEVICES)
def test_everything_in_order(device):
    where = torch.device(device)

    def fetch(number):
        return (moved(torch.full((1000,), float(number)), where), (moved(torch.tensor([number]), where), None))

    pairs = list(prefetched(iter(range(20)), fetch, where))
    assert [one for one, _ in pairs] == list(range(20))
    for one, (values, (number, nothing)) in pairs:
        assert values.device.type == number.device.type == device
        assert (values == one).all()
        assert (number.tolist(), nothing) == ([one], None)


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_wanted(device):
    assert list(prefetched([], lambda one: one, torch.device(device))) == []


@pytest.mark.parametrize("device", DEVICES)
def test_an_error_comes_where_the_thing_would(device):
    def fetch(number):
        if number == 2:
            raise OSError("the disk is gone")
        return torch.tensor(number)

    found = prefetched(range(4), fetch, torch.device(device))
    assert [next(found)[0], next(found)[0]] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


@pytest.mark.parametrize("device", DEVICES)
def test_one_who_stops_early_is_let_go(device):
    found = prefetched(range(4), torch.tensor, torch.device(device))
    assert next(found)[0] == 0
    found.close()
    assert list(found) == []


def test_a_cpu_fetches_when_it_is_asked():
    """So that a prefix whose statistics move sees batches and evaluations in their order."""
    fetched = []
    for one, _ in prefetched(range(3), fetched.append, torch.device("cpu")):
        assert fetched == list(range(one + 1))
