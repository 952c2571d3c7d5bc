"""What an interrupted sweep has left, from its ledger."""

import json

import numpy as np
import pytest

from raysweep.recipe import Recipe, RecipeError
from raysweep.sweep.evidence import pack
from raysweep.sweep.history import Ending, History, check_plan, check_same, history_of, other_versions, replay
from raysweep.sweep.ledger import Ledger, read
from raysweep.sweep.plan import plan
from raysweep.sweep.rungs import Entrant, Guard
from tests.sweep.sample_rows import configuration, epoch_row

NAMES = ["a", "b", "c"]


def evidence(right):
    return pack(np.arange(200) < right * 200)


def rule():
    rates = {"a": 0.1, "b": 0.2, "c": 0.3}
    return Guard({name: Entrant("g", rate, 0) for name, rate in rates.items()}, (1, 2), 0.005, 3.0)


@pytest.fixture
def book(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.describe({"recipe": {}, "versions": {"raysweep": "0.1.0"}})
        ledger.plan([configuration(name) for name in NAMES])
        yield ledger


def test_of_a_new_run_nothing_is_known():
    assert History().unfinished(NAMES) == NAMES
    assert replay(History(), rule()) == []


def test_unfinished_trials_go_on_in_the_order_in_which_they_began(book):
    for name in ("c", "b"):
        book.trial(name, "running")
    history = history_of(read(book.folder))
    assert history.unfinished(NAMES) == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("state", "more", "ended"),
    [
        ("finished", {}, True),
        ("stopped", {}, True),
        ("dropped", {}, True),
        ("failed", {"diverged": True}, True),
        ("failed", {"error": "its process was killed"}, False),
        ("interrupted", {}, False),
        ("running", {}, False),
    ],
)
def test_which_states_are_an_end(book, state, more, ended):
    book.trial("a", "running")
    book.trial("a", state, **more)
    assert ("a" in history_of(read(book.folder)).ended) == ended


def test_a_trial_that_began_again_has_not_ended(book):
    book.trial("a", "failed", error="its process was killed")
    book.trial("a", "running")
    assert history_of(read(book.folder)).unfinished(NAMES) == ["a", "b", "c"]


def test_damaged_lines_are_left_out(book):
    book.epoch(epoch_row("a", 1))
    with (book.folder / "epochs.jsonl").open("a") as file:
        file.write(json.dumps({"trial": "a", "epoch": 2, "val_accuracy": "high"}) + "\n")
    assert [row.epoch for row in history_of(read(book.folder)).rows] == [1]


def test_the_rule_comes_to_the_same_decisions(book):
    """A live rule and a replayed one, told the rows in the order of their arrival."""
    live = rule()
    rows = [("a", 1, 0.9), ("b", 1, 0.5), ("c", 1, 0.89), ("a", 2, 0.95), ("c", 2, 0.4)]
    for name, epoch, right in rows:
        row = epoch_row(name, epoch, evidence=evidence(right))
        live.report(row)
        book.epoch(row)
    again = rule()
    endings = replay(history_of(read(book.folder)), again)
    assert again.stopped == live.stopped
    assert set(live.stopped) == {"b", "c"}
    assert endings == [Ending("b", live.stopped["b"]), Ending("c", live.stopped["c"])]


def test_who_was_found_to_be_behind_by_anothers_row_goes_on_to_its_next(book):
    """As it would have, had nothing happened: it is stopped when it reports."""
    for name, right in (("b", 0.5), ("a", 0.9)):
        book.epoch(epoch_row(name, 1, evidence=evidence(right)))
    again = rule()
    assert replay(history_of(read(book.folder)), again) == []
    assert "b" in again.stopped


def test_an_end_that_is_recorded_is_not_found_again(book):
    book.epoch(epoch_row("a", 1, over=True, evidence=evidence(0.9)))
    assert replay(history_of(read(book.folder)), rule()) == [Ending("a", None)]
    book.trial("a", "finished")
    assert replay(history_of(read(book.folder)), rule()) == []


# ---- the same sweep ----


def recipe(**more):
    return Recipe.model_validate(
        {"grid": {"backbone": "small_cnn", "depth": [1]}, "data": {"dataset": "fake:4"}} | more
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"train": {"epochs": 3}}, "train.epochs is 10 there and 3 here"),
        ({"grid": {"backbone": "small_cnn", "depth": [2]}}, r"grid.depth is \[1\] there and \[2\] here"),
        ({"tolerance": 1.0}, "tolerance is 0.5 there and 1.0 here"),
        ({"asha": None}, "asha is None|asha"),
    ],
)
def test_another_recipe_is_refused_with_what_differs(more, said):
    with pytest.raises(RecipeError, match=said):
        check_same(recipe(**more), recipe(), "runs/x")


def test_the_same_recipe_is_the_same_whatever_its_description():
    check_same(recipe(description="other words"), recipe(), "runs/x")


def test_trials_that_this_version_does_not_plan_are_refused(book):
    with pytest.raises(RecipeError, match=r"3 of its trials are not in this version.s plan"):
        check_plan(plan(recipe(model={"weights": "none"})), read(book.folder), "runs/x")


def test_versions_that_differ_are_named():
    assert other_versions({"torch": "2.9", "ray": "2.60"}, {"torch": "2.10", "ray": "2.60", "timm": "1"}) == [
        "torch 2.9 → 2.10"
    ]
