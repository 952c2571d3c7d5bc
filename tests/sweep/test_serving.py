"""Which model a folder holds, which images are meant, and what the model says of them."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from raysweep.recipe import RecipeError
from raysweep.sweep import predictions, serving
from tests.data.image_files import write_image
from tests.sweep.made_models import HEADS, NAMES, write_model


def finals(run, *names):
    for name in names:
        (run / "final" / name).mkdir(parents=True)
        (run / "final" / name / "model.json").write_text("{}")
    return run


@pytest.mark.parametrize(
    ("names", "found", "note"),
    [
        (["recommended"], "recommended", ""),
        (["resnet18"], "resnet18", ""),
        (["a", "recommended"], "recommended", "holds 2 final models: a, recommended; this is recommended"),
        (["a", "best"], "best", "holds 2 final models: a, best; this is best"),
    ],
)
def test_the_model_of_a_run_folder(names, found, note, tmp_path):
    run = finals(tmp_path / "run", *names)
    for where in (run, run / "final"):
        folder, said = serving.find_model(where)
        assert folder == run / "final" / found
        assert said.endswith(note) and bool(said) == bool(note)
    assert serving.find_model(run / "final" / names[0]) == (run / "final" / names[0], "")


def test_the_model_of_a_run_of_the_first_edition(tmp_path):
    assert serving.find_model(finals(tmp_path, ".")) == (tmp_path / "final", "")


def test_folders_without_a_model(tmp_path):
    for where, said in (
        (tmp_path / "nowhere", "nowhere is not a folder; give a run folder such as"),
        (tmp_path, r"holds no final model \(no final/<name>/model.json\); give a run folder whose"),
        (finals(tmp_path / "run", "a", "b"), "holds 2 final models: a, b; give the folder of one, such as .*final/a"),
    ):
        with pytest.raises(RecipeError, match=said):
            serving.find_model(where)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04N.", b"[1, 2, 3]       "])
def test_damaged_models_are_refused(name, content, tmp_path):
    write_model(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match="holds no model that can be read") as caught:
        serving.read_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_images_of_folders_and_files(tmp_path):
    for name in ("b.png", "a/2.JPG", "a/10.jpg", ".hidden.png", "@eaDir/a.png"):
        write_image(tmp_path / "folder" / name)
    (tmp_path / "folder" / "notes.txt").write_text("")
    (tmp_path / "folder" / "loop").symlink_to(tmp_path / "folder")
    lone = tmp_path / "x.unknown"
    found = serving.image_files([lone, tmp_path / "folder"])
    assert found == [lone, *(tmp_path / "folder" / name for name in ("b.png", "a/10.jpg", "a/2.JPG"))]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="empty holds no images"):
        serving.image_files([tmp_path / "empty"])


def test_files_that_cannot_be_read_are_named_and_others_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "AT_ONCE", 2)
    model = serving.read_model(write_model(tmp_path / "model"))
    files = [write_image(tmp_path / f"{seed}.png", seed, (30, 20)) for seed in range(3)]
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:200])
    said = list(serving.answers(model, [files[0], broken, files[1], tmp_path / "none.png", files[2]], 5))
    assert [one.problem.partition(" (")[0] for one in said] == ["", "is not a readable image", "", "is not there", ""]
    read = [one for one in said if not one.problem]
    assert [one.image for one in read] == list(map(str, files))
    for one in read:
        assert {name for name, _ in one.classes} == set(NAMES)
        assert sum(p for _, p in one.classes) == pytest.approx(1)
        assert [p for _, p in one.classes] == sorted((p for _, p in one.classes), reverse=True)
    expected = [model([file])[0] for file in files]
    assert [one.classes[0] for one in read] == [(name, pytest.approx(p)) for name, p in expected]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head[0]["kind"])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_answers_as_the_reported_predictions(head, seed, tmp_path):
    """The final fit predicts from stored images with the network that it exports, and writes predictions.csv."""
    folder = write_model(tmp_path / "model", head, seed=seed)
    model = serving.read_model(folder)
    files = [tmp_path / f"{number}.{('png', 'jpg')[number % 2]}" for number in range(8)]
    for number, file in enumerate(files):
        colours = np.random.RandomState(9 * seed + number).randint(0, 256, (3, 2, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((14 + number, 30 - number)).save(file)
    pool = np.stack([model.preparation.decode(Image.open(file)) for file in files])
    with torch.no_grad():
        confidence, predicted = model.network(model.preparation(torch.from_numpy(pool))).softmax(1).max(1)
    test = SimpleNamespace(
        names=[file.name for file in files], labels=np.arange(8) % 3, images=lambda positions: pool[positions]
    )
    dataset = SimpleNamespace(test=test, class_names=NAMES, superclasses=None)
    predictions.write(folder, dataset, predicted.numpy(), confidence.numpy())
    with (folder / "predictions.csv").open(encoding="utf-8") as lines:
        reported = list(csv.DictReader(lines))
    said = list(serving.answers(model, files, 1))
    assert len({row["predicted"] for row in reported}) > 1
    for row, one in zip(reported, said, strict=True):
        ((name, probability),) = one.classes
        assert (one.image, name) == (str(tmp_path / row["image"]), row["predicted"])
        assert probability == pytest.approx(float(row["probability"]), abs=1e-4)
