"""The command `python -m raysweep.predict`."""

import csv
import io
import json

import pytest
from click.testing import CliRunner

from raysweep.predict import main
from tests.data.image_files import write_image
from tests.sweep.made_models import NAMES, write_model


@pytest.fixture
def run(tmp_path):
    write_model(tmp_path / "run" / "final" / "recommended")
    for seed in range(3):
        write_image(tmp_path / "images" / f"{seed}.png", seed, (30, 20))
    return tmp_path / "run"


def call(*words):
    return CliRunner().invoke(main, list(map(str, words)))


def test_table_json_and_csv_say_the_same(run):
    images = run.parent / "images"
    told = json.loads(call(run, images, "--json", "--top", 2).stdout)
    assert told["model"] == str(run / "final" / "recommended")
    assert [one["image"] for one in told["predictions"]] == [str(images / f"{n}.png") for n in range(3)]
    assert all(len(one["classes"]) == 2 for one in told["predictions"])
    flat = [(one["image"], c["class"], c["probability"]) for one in told["predictions"] for c in one["classes"]]
    rows = list(csv.DictReader(io.StringIO(call(run, images, "--csv", "--top", 2).stdout)))
    assert [(row["image"], row["predicted"]) for row in rows] == [one[:2] for one in flat]
    assert [float(row["probability"]) for row in rows] == pytest.approx([p for *_, p in flat], abs=1e-6)
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    table = call(run, images, "--top", 2)
    assert (table.exit_code, table.stderr) == (0, "")
    lines = [line.split() for line in table.stdout.splitlines()]
    assert lines[0] == ["image", "predicted", "probability"]
    assert [line[-2:] for line in lines[1:]] == [[name, f"{p:.4f}"] for _, name, p in flat]
    assert len(call(run, images, "--csv", "--top", 9).stdout.splitlines()) == 1 + 3 * len(NAMES)


def test_unreadable_images_are_named_with_status_1(run):
    images = run.parent / "images"
    (images / "1.png").write_bytes(b"no image")
    done = call(run, images, images / "none.png", "--json")
    assert done.exit_code == 1
    assert [one["image"] for one in json.loads(done.stdout)["unreadable"]] == [
        str(images / "1.png"),
        str(images / "none.png"),
    ]
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: {images / '1.png'} is not a readable image (cannot identify image file")
    assert second == f"error: {images / 'none.png'} is not there"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "x.png"], "error: nowhere is not a folder; give a run folder such as runs/quickstart-…"),
        (["{run}", "x.png", "--json", "--csv"], "error: --json and --csv are two forms of one answer; choose one"),
        (["{run}", "{run}"], "holds no images; give image files, or a folder of them"),
        (["{run}"], "Missing argument 'IMAGE...'"),
        (["{run}", "x.png", "--top", "0"], "0 is not in the range x>=1"),
    ],
)
def test_mistakes_are_answered_with_status_2(words, said, run):
    done = call(*(word.format(run=run) for word in words))
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_of_several_models_the_recommended_one_is_taken_and_said(run):
    write_model(run / "final" / "other", seed=1)
    done = call(run, run.parent / "images")
    assert done.exit_code == 0
    assert done.stderr == f"{run} holds 2 final models: other, recommended; this is recommended\n"
    assert call(run / "final" / "other", run.parent / "images").stdout != done.stdout
