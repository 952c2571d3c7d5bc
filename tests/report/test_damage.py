"""Damaged run folders: what can be shown is shown, and what cannot is named."""

import json
import shutil
from random import Random

import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from raysweep.report import page
from raysweep.report.__main__ import main
from raysweep.report.sections import comparison, final
from raysweep.sweep.ledger import RunFolderError, read
from tests.report import damage

FIGURES = {
    comparison: (
        "differences_figure", "score_by_depth", "gap_by_depth", "cost_figure", "learning_curves", "accuracy_by_lr",
    ),
    final: ("confusion_figure", "reliability"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return damage.whole_run(tmp_path_factory.mktemp("damage") / "sound")


@pytest.fixture
def folder(sound, tmp_path):
    """A copy to damage."""
    return shutil.copytree(sound, tmp_path / "run")


@pytest.fixture
def blank(monkeypatch):
    """No pictures, which take most of the time."""
    monkeypatch.setattr(page, "png", lambda figure: b"")
    for module, names in FIGURES.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_: Figure())


def reported(folder):
    """The facts of the report of a damaged folder, which is written; None where nothing is left to show."""
    try:
        facts = page.gather([read(folder)])
    except RunFolderError as error:
        assert "recipe.yaml" in str(error)
        return None
    assert page.in_short(facts)
    html = page.write(facts).read_text(encoding="utf-8")
    assert "<td>nan</td>" not in html
    for said in page.unread(facts):
        assert "\n" not in said
        assert said.partition(" ")[0].rstrip(":,") in html
    return facts


def check(sound, tmp_path, seed, number):
    random = Random(seed)
    for _ in range(number):
        folder = shutil.copytree(sound, tmp_path / "run", dirs_exist_ok=False)
        what = damage.damage(random.choice(damage.files_of(folder)), random)
        try:
            reported(folder)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {what}") from error
        shutil.rmtree(folder)


@pytest.mark.parametrize("seed", range(20))
def test_ten_damages(sound, tmp_path, blank, seed):
    check(sound, tmp_path, seed, 10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", (100, 101, 102))
def test_fifty_damages_with_figures(sound, tmp_path, monkeypatch, seed):
    monkeypatch.setattr(page, "png", lambda figure: b"")
    check(sound, tmp_path, seed, 50)


def test_a_sound_folder_has_nothing_to_say(folder, blank):
    assert reported(folder).unread == []


def line(number, text):
    """Put a text in the place of a line, counted from 1."""

    def change(path):
        lines = path.read_text().splitlines()
        lines[number - 1] = text if isinstance(text, str) else json.dumps(text(json.loads(lines[number - 1])))
        path.write_text("\n".join(lines) + "\n")

    return change


def without(*keys):
    return lambda row: {key: value for key, value in row.items() if key not in keys}


def content(text):
    return lambda path: path.write_text(text)


DAMAGES = {
    "a line null": ("epochs.jsonl", line(3, "null"), "epochs.jsonl, line 3: is no row"),
    "a line of rubbish": ("trials.jsonl", line(2, "{{{"), "trials.jsonl, line 2: is no JSON"),
    "NaN": (
        "epochs.jsonl", line(4, lambda row: row | {"val_loss": float("nan")}),
        "epochs.jsonl, line 4: val_loss is not as a sweep writes it",
    ),
    "no epoch": ("epochs.jsonl", line(1, without("epoch")), "epochs.jsonl, line 1: has no epoch"),
    "no state": ("trials.jsonl", line(7, without("state")), "trials.jsonl, line 7: has no state"),
    "text for a number": (
        "epochs.jsonl", line(2, lambda row: row | {"seconds": "x", "lr": []}),
        "epochs.jsonl, line 2: lr, seconds are not as a sweep writes it",
    ),
    "a null result": ("final/recommended/result.json", content("null"), "final/recommended/result.json holds nothing"),
    "half a result": ("final/recommended/result.json", content("{"), "final/recommended/result.json is no JSON: "),
    "an empty table": ("audit.csv", content(""), "audit.csv cannot be read as the table of an audit"),
    "a broken picture": ("audit_pairs.png", content("x"), "audit_pairs.png cannot be read as a picture"),
    "broken samples": (
        "final/recommended/samples.png", content("x"), "final/recommended/samples.png cannot be read as a picture",
    ),
    "an empty audit": ("audit.json", content("{}"), "audit.json: images, pairs, duplicated_test is not as a sweep"),
    "features": ("features.json", content('{"decisions": [3], "made": []}'), "features.json: number 1 of decisions is"),
    "no recipe": ("recipe.yaml", content("a: [1"), "recipe.yaml cannot be read: "),
    "a list": ("recipe.yaml", content("[1]"), "recipe.yaml cannot be read: it holds no mapping"),
    "a strange tolerance": (
        "recipe.yaml", content("{recipe: {tolerance: x}, started: now}"),
        "recipe.yaml: recipe.tolerance is not as a sweep writes it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_damaged_is_named_and_the_rest_is_shown(folder, blank, kind):
    name, change, said = DAMAGES[kind]
    change(folder / name)
    result = CliRunner().invoke(main, [str(folder)])
    assert (result.exit_code, result.exception) == (0, None)
    assert f"warning: {said}" in result.stderr
    assert result.stdout.startswith(("Fine-tune the last 3 layers", "Undecided", "Train only"))


@pytest.mark.parametrize("name", ["validation", "trial"])
def test_predictions_that_cannot_be_read(folder, blank, name):
    found = sorted((folder / "predictions").iterdir())
    path = next(path for path in found if (path.stem == "validation") == (name == "validation"))
    path.write_bytes(path.read_bytes()[:50])
    facts = reported(folder)
    assert facts.unread == [f"predictions/{path.name} cannot be read"]
    assert not facts.answer.from_predictions


def test_a_trial_whose_last_epochs_are_lost_is_not_compared(folder, blank):
    """Its row of the state says finished: a figure of its third epoch would be taken for its result."""
    rows = [json.loads(one) for one in (folder / "epochs.jsonl").read_text().splitlines()]
    trial = rows[0]["trial"]
    kept = [row for row in rows if row["trial"] != trial or row["epoch"] <= 3]
    (folder / "epochs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    facts = reported(folder)
    assert facts.unread == [f"epochs.jsonl has 3 of its 6 epochs of trial {trial}, which is therefore not compared"]
    assert facts.count("interrupted") == 1


def test_a_trial_that_no_line_tells_of_is_left_out(folder, blank):
    trial = json.loads((folder / "epochs.jsonl").read_text().splitlines()[0])["trial"]
    for name in ("epochs.jsonl", "trials.jsonl"):
        lines = [json.loads(one) for one in (folder / name).read_text().splitlines()]
        lines = [without("lr", "seed")(row) if row["trial"] == trial else row for row in lines]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    facts = reported(folder)
    assert facts.unread == [f"trial {trial} is left out: no line says its lr, seed"]
    assert trial not in set(facts.trials["trial"])


def test_a_torn_last_line_is_what_a_killed_sweep_leaves(folder, blank):
    with (folder / "trials.jsonl").open("a") as file:
        file.write('{"trial": "abc", "sta')
    assert reported(folder).unread == []


def test_of_many_lines_the_first_are_named(folder, blank):
    number = len((folder / "epochs.jsonl").read_text().splitlines())
    (folder / "epochs.jsonl").write_text("null\n" * number)
    facts = reported(folder)
    assert facts.unread[5] == f"epochs.jsonl: {number - 5} more such lines"


def test_nothing_to_show_exits_2(folder):
    for name in ("epochs.jsonl", "trials.jsonl", "recipe.yaml"):
        (folder / name).write_text("null")
    result = CliRunner().invoke(main, [str(folder)])
    assert result.exit_code == 2
    assert "recipe.yaml cannot be read, and there are no rows of trials" in result.stderr
