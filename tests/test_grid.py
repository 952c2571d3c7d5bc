"""The command, as far as it goes without starting a sweep."""

import json

import pytest
from click.testing import CliRunner

from raysweep.grid import PLAN_FIELDS, main
from raysweep.recipe import preset_names
from tests.data.image_files import write_classes

SMALL = ("grid.backbone=small_cnn", "grid.depth=[1, all]", "grid.lr=0.001", "grid.seed=0", "model.weights=none")


def call(*words):
    return CliRunner().invoke(main, list(words))


def test_list():
    result = call("--list")
    lines = result.output.splitlines()
    assert result.exit_code == 0
    assert [line.split()[0] for line in lines] == preset_names()
    assert all(len(line.split()) > 3 for line in lines)


def test_plan():
    result = call(*SMALL, "--plan", "grid.lr=[0.1, 0.2]")
    assert (result.exit_code, result.stderr) == (0, "")
    header, one, everything, *_, total = result.output.splitlines()
    assert header.split() == ["backbone", "depth", "layers", "from", "tensors", "trainable", "of", "trials"]
    assert one.split() == ["small_cnn", "1", "1", "classifier", "2", "650", "24,346", "2"]
    assert everything.split() == ["small_cnn", "all", "7", "stage1.0", "11", "24,346", "24,346", "2"]
    assert total == "4 trials, at most 24 epochs in all; nothing was trained or fetched"


def test_plan_tells_what_is_ignored(tmp_path):
    root = write_classes(tmp_path / "pets", {"cat": 4, "dog": 4})
    (root / "cat" / "a.heic").write_bytes(b"")
    words = (*SMALL, "--plan", "data.dataset=imagefolder", f"data.root={root}", "data.image_size=32")
    assert "\nignored 1 file: .heic 1\n" in call(*words).stdout
    assert json.loads(call(*words, "--json").output)["notes"] == ["ignored 1 file: .heic 1"]


def test_plan_tells_the_precision():
    result = call(*SMALL, "--plan", "features.precision=bfloat16", "data.dataset=fake:10", "data.image_size=32")
    assert (result.exit_code, result.stderr) == (0, "")
    assert " MiB, computed in bfloat16 and stored as bfloat16; predicted saving" in result.output
    result = call(*SMALL, "--plan", "--json", "features.precision=tf32", "data.dataset=fake:10", "data.image_size=32")
    kinds = {(one["precision"], one["stored_as"]) for one in json.loads(result.output)["features"]}
    assert kinds == {("tf32", "float32")}


def test_plan_tells_phases():
    result = call(*SMALL, "--plan", "train.phases=[{depth: 1, epochs: 2}, {}]")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "1 trials in phases: 1 for 2 epochs, then all for 6 epochs" in result.output


def test_plan_as_json():
    result = call(*SMALL, "--plan", "--json", "name=mine")
    answer = json.loads(result.output)
    assert answer["name"] == "mine"
    assert [trial["depth"] for trial in answer["trials"]] == [1, "all"]
    assert all(tuple(trial) == PLAN_FIELDS for trial in answer["trials"])


def test_plan_of_a_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(
        "data: {dataset: fake}\ngrid: {backbone: small_cnn, depth: [2, [stage1, head]]}\nmodel: {weights: none}"
    )
    answer = json.loads(call(str(path), "--plan", "--json").output)
    assert [trial["depth"] for trial in answer["trials"]] == [2, ["stage1", "head"]]


def test_smoke_is_the_same_grid_on_little():
    whole, smoke = (json.loads(call("--plan", "--json", *more).output) for more in ((), ("--smoke",)))
    assert smoke["name"] == "quickstart-smoke"
    fields = ("backbone", "depth", "lr", "seed", "trainable_parameters", "image_size")
    assert [[t[f] for f in fields] for t in smoke["trials"]] == [[t[f] for f in fields] for t in whole["trials"]]
    assert {(trial["epochs_planned"], trial["weights"]) for trial in smoke["trials"]} == {(1, "none")}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("quickstar",), ("no preset named quickstar", "did you mean quickstart?")),
        (("nowhere.yaml",), ("no recipe file nowhere.yaml",)),
        (("quickstart", "smoke"), ("one recipe at a time, not quickstart and smoke",)),
        (("train.epoch=3",), ("train.epoch is not a key of a recipe", "epochs")),
        (("train.epochs=many",), ("train.epochs=many", "integer")),
        (("--json",), ("--json goes with --plan",)),
        (("--plan", "grid.backbone=resnet81"), ("grid.backbone=resnet81 is not a known network", "resnet18")),
        (("--plan", "grid.depth=999"), ("grid.depth=999 is deeper than", 'or "all"')),
        (("--plan", "data.dataset=digit"), ("data.dataset=digit", "digits")),
        (("--smoke", "data.dataset=digit"), ("data.dataset=digit", "digits")),
        (("grid.backbone=resnet81",), ("grid.backbone=resnet81 is not a known network",)),  # before Ray is started
    ],
)
def test_mistake(words, parts):
    result = call(*words)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def test_several_mistakes_are_a_line_each():
    result = call("train.epoch=3", "data.val_fraction=2", "grid.seed=-1", "grid.depth=1")
    assert result.exit_code == 2
    assert [line.split()[1].partition("=")[0] for line in result.stderr.splitlines()] == [
        "data.val_fraction",
        "grid.seed.0",
        "train.epoch",
    ]


def test_help_shows_examples():
    result = call("--help")
    assert result.exit_code == 0
    assert "KEY=VALUE" in result.output
    assert "--plan" in result.output


def test_unknown_option():
    result = call("--plann")
    assert result.exit_code == 2
    assert "--plan" in result.output + result.stderr
