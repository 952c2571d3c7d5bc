"""What a trial may occupy, and how many run at a time."""

import os

import pytest

from raysweep.engine.resources import MOST_FINAL_WORKERS, Machine, usable_cpus
from raysweep.recipe import Recipe, RecipeError


def recipe(workers=None, **resources):
    return Recipe.model_validate({"resources": resources, "final": {"workers": workers}})


@pytest.mark.parametrize(
    ("machine", "resources", "lanes", "gpus", "final"),
    [
        (Machine(2, 0), {}, 2, 0.0, 2),
        (Machine(7, 0), {"cpus_per_worker": 2}, 3, 0.0, 3),
        (Machine(7, 0), {"workers_per_trial": 2}, 3, 0.0, 7),
        (Machine(64, 0), {}, 64, 0.0, MOST_FINAL_WORKERS),
        (Machine(64, 0), {"max_concurrent": 4}, 4, 0.0, MOST_FINAL_WORKERS),
        (Machine(8, 2), {}, 2, 1.0, 2),
        (Machine(8, 2), {"gpus_per_worker": 0.25}, 8, 0.25, 2),
        (Machine(3, 2), {"gpus_per_worker": 0.25}, 3, 0.25, 2),
        (Machine(8, 2), {"gpus_per_worker": 0}, 8, 0.0, 8),
        (Machine(8, 4), {"workers_per_trial": 2}, 2, 1.0, 4),
        (Machine(2, 0), {"max_concurrent": 9}, 2, 0.0, 2),
    ],
)
def test_what_fits(machine, resources, lanes, gpus, final):
    asked = recipe(**resources)
    machine.check(asked)
    assert (machine.lanes(asked), machine.gpus_per_worker(asked), machine.final_workers(asked)) == (lanes, gpus, final)


def test_the_final_fit_has_as_many_workers_as_asked_for():
    assert Machine(8, 0).final_workers(recipe(workers=3)) == 3


def test_the_final_fit_has_fewer_workers_where_nodes_are_gone():
    assert Machine(2, 0).final_workers(recipe(workers=3)) == 2
    assert Machine(0, 0).final_workers(recipe(workers=3)) == 1


@pytest.mark.parametrize(
    ("machine", "asked", "words"),
    [
        (Machine(2, 0), recipe(workers_per_trial=3), ["resources.workers_per_trial=3", "needs 3 CPUs", "there are 2"]),
        (Machine(2, 0), recipe(cpus_per_worker=4), ["resources.cpus_per_worker=4", "needs 4 CPUs"]),
        (Machine(2, 0), recipe(workers=3), ["final.workers=3", "needs 3 CPUs"]),
        (Machine(8, 1), recipe(gpus_per_worker=2), ["resources.gpus_per_worker=2", "needs 2 GPUs", "there are 1"]),
        (Machine(8, 1), recipe(workers_per_trial=2), ["resources.workers_per_trial=2", "needs 2 GPUs"]),
        (
            Machine(8, 2),
            recipe(workers_per_trial=2, gpus_per_worker=0.5),
            ["resources.gpus_per_worker=0.5", "cannot share a GPU"],
        ),
    ],
)
def test_what_never_fits_is_a_mistake(machine, asked, words):
    with pytest.raises(RecipeError) as caught:
        machine.check(asked)
    (problem,) = caught.value.problems
    assert [word for word in words if word not in problem] == []


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes are bound to cores on Linux alone")
def test_cpus_are_those_that_this_process_may_use():
    assert usable_cpus() == len(os.sched_getaffinity(0))
