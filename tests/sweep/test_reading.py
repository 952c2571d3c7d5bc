"""Files of a run folder that are not as a sweep writes them; tests/report/test_damage.py has what is made of them."""

import json

import pytest

from raysweep.recipe.yaml_core import YamlError
from raysweep.sweep import reading

ROW = {"trial": "a", "epoch": 1, "val_loss": 0.5, "seconds": 1.0, "depth": ["layer1", "fc"], "optimizer": "sgd"}


@pytest.fixture
def rows(tmp_path):
    """The rows of lines, and what is said of them."""

    def read(*lines, name="epochs.jsonl", end="\n"):
        (tmp_path / name).write_text("\n".join(lines) + end)
        unread = []
        return reading.rows(tmp_path / name, unread), unread

    return read


def test_a_sound_row_is_as_it_was_written(rows):
    assert rows(json.dumps(ROW)) == ([ROW], [])


@pytest.mark.parametrize(
    ("change", "kept", "said"),
    [
        ({"val_loss": float("inf")}, True, "val_loss is not as a sweep writes it"),
        ({"seconds": "1.0", "epoch": 2}, True, "seconds is not as a sweep writes it"),
        ({"depth": [1, {}]}, True, "depth is not as a sweep writes it"),
        ({"val_by_step": [{"step": 1}]}, True, "val_by_step is not as a sweep writes it"),
        ({"epoch": True}, False, "has no epoch"),
        ({"trial": None}, False, "has no trial"),
        ({"something": float("nan")}, True, None),  # an axis of a grid to come
    ],
)
def test_fields(rows, change, kept, said):
    found, unread = rows(json.dumps(ROW | change))
    assert len(found) == kept
    assert unread == ([f"epochs.jsonl, line 1: {said}"] if said else [])


@pytest.mark.parametrize("line", ["null", "3", "[]", "x", "[" * 100_000])
def test_lines_that_are_no_rows(rows, line):
    found, (said,) = rows(json.dumps(ROW), line, json.dumps(ROW))
    assert found == [ROW, ROW]
    assert said.startswith("epochs.jsonl, line 2: is no ")


def test_blank_lines_and_a_torn_last_line_say_nothing(rows):
    assert rows(json.dumps(ROW), "", '{"trial": "a', end="") == ([ROW], [])


def test_a_state_that_is_none(rows):
    found, unread = rows('{"trial": "a", "state": "done"}', name="trials.jsonl")
    assert (found, unread) == ([], ["trials.jsonl, line 1: has no state"])


def test_trials_of_which_no_row_says_what_they_are():
    whole = dict.fromkeys(reading.TELLS_A_TRIAL, 1)
    assert reading.nameless([{"trial": "a"}, {"trial": "a"} | whole, {"trial": "b", "lr": 1} | whole]) == {}
    del whole["lr"]
    assert reading.nameless([{"trial": "a"} | whole]) == {"a": ["lr"]}


@pytest.mark.parametrize("text", ["", "null", "[1]", "a: [1", "\0"])
def test_a_recipe_that_is_none(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(YamlError):
        reading.about(tmp_path / "recipe.yaml", [])


def test_fields_of_a_recipe(tmp_path):
    recipe = "{confidence: 2, tolerance: 1, data: {root: [1], limit: 3}}"
    (tmp_path / "recipe.yaml").write_text(f"{{recipe: {recipe}, command: 3}}")
    unread = []
    assert reading.about(tmp_path / "recipe.yaml", unread) == {"recipe": {"tolerance": 1, "data": {"limit": 3}}}
    assert unread == [
        "recipe.yaml has no started",
        "recipe.yaml: recipe.data.root is not as a sweep writes it",
        "recipe.yaml: recipe.confidence is not as a sweep writes it",
        "recipe.yaml: command is not as a sweep writes it",
    ]
