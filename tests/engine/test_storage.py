"""Where the files of a run are: a folder, or an S3 server on the loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep.engine.storage import LocalCopy, Storage, storage_of
from raysweep.recipe import RecipeError
from raysweep.sweep import ledger
from tests.engine.s3_server import s3


@pytest.fixture(scope="module")
def bucket():
    before = dict(os.environ)
    with s3("runs") as variables:
        yield variables
    for name in variables:
        os.environ.pop(name)
    os.environ.update(before)


@pytest.fixture(params=["folder", "s3"])
def storage(request, tmp_path, bucket):
    os.environ.update(bucket)
    return storage_of(str(tmp_path / "run") if request.param == "folder" else f"s3://runs/{tmp_path.name}")


def test_files_are_written_read_listed_and_removed(storage):
    storage.check()
    assert storage.names() == []
    for name in ("a", "b/c", "b/d/e"):
        storage.write(name, name.encode())
    storage.write("a", b"later")
    assert storage.names() == ["a", "b/c", "b/d/e"]
    assert storage.names("b") == ["c", "d/e"]
    assert (storage.read("a"), storage.below("b").read("d/e")) == (b"later", b"b/d/e")
    storage.remove("a")
    storage.remove("a")
    storage.remove_folder("b/d")
    storage.remove_folder("nowhere")
    assert storage.names() == ["b/c"]


def test_a_file_that_is_not_there(storage):
    with pytest.raises(OSError):
        storage.read("nothing")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("ftpx://host/runs", "no way to ftpx:// here; give a folder, s3:// or gs://"),
        ("s3://no-such-bucket/run", "cannot be written to"),
    ],
)
def test_what_cannot_be_written_to_is_a_mistake(where, words, bucket):
    os.environ.update(bucket)
    with pytest.raises(RecipeError, match=words):
        storage_of(where).check()


def test_without_its_library_an_extra_is_named(monkeypatch):
    def missing(_):
        raise ImportError("Install s3fs")

    monkeypatch.setattr("fsspec.filesystem", missing)
    with pytest.raises(RecipeError, match=r'pip install "raysweep\[s3\]"'):
        storage_of("s3://bucket/run")


def test_a_copy_is_uploaded_and_can_be_brought_to_another_machine(tmp_path, monkeypatch, bucket):
    os.environ.update(bucket)
    storage = storage_of(f"s3://runs/{tmp_path.name}")
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "one"))
    with LocalCopy(storage) as copy:
        copy.folder.mkdir(parents=True)
        (copy.folder / "epochs.jsonl").write_text("{}\n")
        (copy.folder / "ray").mkdir()
        (copy.folder / "ray" / "log").write_text("of this machine alone")
        storage.write("predictions/a.npz", b"of a trial")
        storage.write("checkpoints/a/000000001.json", b"of a trial")
    assert storage.names() == ["checkpoints/a/000000001.json", "epochs.jsonl", "predictions/a.npz"]
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "other"))
    with LocalCopy(storage) as other:
        other.download()
        assert other.folder != copy.folder
        assert (other.folder / "epochs.jsonl").read_text() == "{}\n"
        assert (other.folder / "predictions" / "a.npz").read_bytes() == b"of a trial"
        assert not (other.folder / "checkpoints").exists()


def test_what_is_written_here_is_not_overwritten(tmp_path, monkeypatch, bucket):
    """While a sweep runs, only what its trials write is brought here."""
    os.environ.update(bucket)
    storage = storage_of(f"s3://runs/{tmp_path.name}")
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path))
    with LocalCopy(storage) as copy:
        copy.folder.mkdir(parents=True)
        storage.write("epochs.jsonl", b"as it was uploaded a while ago")
        storage.write("predictions/a.npz", b"of a trial")
        (copy.folder / "epochs.jsonl").write_text("with a row more")
        copy.fetch()
        assert (copy.folder / "epochs.jsonl").read_text() == "with a row more"
        assert (copy.folder / "predictions" / "a.npz").is_file()
    assert storage.read("epochs.jsonl") == b"with a row more"


def test_a_folder_is_its_own_copy(tmp_path):
    with LocalCopy(Storage(str(tmp_path))) as copy:
        copy.download()
        assert copy.folder == tmp_path


def forget_last_trial(storage):
    """As if the first machine had been lost before the last trial had a row."""
    notes = [json.loads(line) for line in storage.read("trials.jsonl").splitlines()]
    rows = [json.loads(line) for line in storage.read("epochs.jsonl").splitlines()]
    last = notes[-1]["trial"]
    notes = [note for note in notes if note["trial"] != last or note["state"] == "planned"]
    for name, kept in (("trials", notes), ("epochs", [row for row in rows if row["trial"] != last])):
        storage.write(f"{name}.jsonl", "".join(json.dumps(one) + "\n" for one in kept).encode())


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_ends_in_the_bucket_and_goes_on_on_another_machine(tmp_path, bucket):
    """The second machine has nothing but the URL."""
    where = f"s3://runs/{tmp_path.name}/run"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "data": {"dataset": "fake:4", "limit": 64, "image_size": 32},
                "grid": {"backbone": "small_cnn", "depth": [1, 3], "lr": 0.01, "seed": [0, 1]},
                "model": {"weights": "none", "batch_norm": "recalibrated"},
                "train": {"epochs": 3, "batch_size": 8},
                "asha": None,
            }
        )
    )

    def run(machine, *words):
        env = os.environ | bucket | {"RAYSWEEP_CACHE": str(tmp_path / machine)}
        command = [sys.executable, "-m", "raysweep.grid", *words]
        return subprocess.run(command, check=False, env=env, cwd=tmp_path, capture_output=True, text=True)

    first = run("one", str(recipe), "--run-dir", where)
    assert first.returncode == 0, first.stderr
    storage = storage_of(where)
    names = storage.names()
    assert {"recipe.yaml", "epochs.jsonl", "report/index.html", "final/recommended/model.safetensors"} <= set(names)
    assert not [name for name in names if name.startswith("checkpoints/")]
    storage.remove_folder("final")
    forget_last_trial(storage)
    second = run("other", "--resume", where)
    assert second.returncode == 0, second.stderr
    assert "1 of them unfinished" in second.stdout
    copy = LocalCopy(storage)
    copy.folder = Path(tmp_path / "looked-at")
    copy.download()
    found = ledger.read(copy.folder)
    assert len(found.epochs) == 12
    assert found.finals
    for name in storage.names():
        assert bucket["AWS_SECRET_ACCESS_KEY"].encode() not in storage.read(name), name
