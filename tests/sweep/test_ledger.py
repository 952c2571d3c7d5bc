import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep.sweep import ledger
from raysweep.sweep.ledger import Ledger, RunFolderError, read

ABOUT = {"recipe": {"name": "été"}, "versions": {"torch": "2"}, "host": "here", "command": "c", "started": "now"}
HOLD = """
import sys, time
from pathlib import Path
from raysweep.sweep.ledger import Ledger
with Ledger(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def book(tmp_path):
    with Ledger(tmp_path / "runs" / "one") as writer:
        writer.describe(ABOUT)
        yield writer


def test_rows_are_readable_while_the_writer_is_open(book):
    book.trial("a", "planned", depth=["layer1", "fc"])
    book.trial("a", "running")
    book.epoch({"trial": "a", "epoch": 1, "val_accuracy": 0.5})
    assert len(read(book.folder).epochs) == 1
    book.epoch({"trial": "a", "epoch": 2, "val_accuracy": math.nan})
    run = read(book.folder)
    assert run.about == ABOUT
    assert [row["epoch"] for row in run.epochs] == [1, 2]
    assert math.isnan(run.epochs[1]["val_accuracy"])
    assert [(row["trial"], row["state"]) for row in run.trials] == [("a", "planned"), ("a", "running")]
    assert run.trials[0]["depth"] == ["layer1", "fc"]
    assert run.trials[0]["time"] <= run.trials[1]["time"]
    assert run.final is None


def test_a_row_is_one_line(book):
    book.epoch({"trial": "a", "note": "two\nlines\u2028three"})
    assert (book.folder / "epochs.jsonl").read_bytes().count(b"\n") == 1
    assert read(book.folder).epochs == [{"trial": "a", "note": "two\nlines\u2028three"}]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_half_written_last_line_is_ignored(book, cut):
    whole, half = ({"trial": "a", "epoch": epoch, "val_loss": 0.25} for epoch in (1, 2))
    book.epoch(whole)
    with (book.folder / "epochs.jsonl").open("a") as file:
        file.write(json.dumps(half)[:-cut])
    assert read(book.folder).epochs == [whole]


def test_final_result_is_read(book):
    ledger.write_text(book.folder / "final" / "result.json", '{"test_accuracy": 0.5}')
    assert read(book.folder).final == {"test_accuracy": 0.5}


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=rf"{tmp_path} is in use by another sweep; give another --run-dir"):
            Ledger(tmp_path).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with Ledger(tmp_path):
        pass


def test_the_lock_is_free_after_the_writer_ends(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), Ledger(tmp_path):
            1 / 0  # noqa: B018


def test_a_folder_with_a_run_is_refused_and_left_alone(tmp_path):
    with Ledger(tmp_path) as book:
        book.describe(ABOUT)
        book.epoch({"epoch": 1})
    for _ in range(2):  # the refusal holds no lock
        with pytest.raises(RunFolderError, match=rf"{tmp_path} holds an earlier run; give another --run-dir"):
            Ledger(tmp_path).__enter__()
    assert read(tmp_path).epochs == [{"epoch": 1}]


@pytest.mark.parametrize(
    ("name", "match"),
    [("file", "file is a file, not a folder"), ("file/run", r"file/run cannot be .* \(Not a directory")],
)
def test_a_file_is_refused(tmp_path, name, match):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=rf"{match}.*; give another --run-dir"):
        Ledger(tmp_path / name).__enter__()


@pytest.mark.parametrize("what", ["mkdir", "lock"])
def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch, what):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(*((Path, "mkdir") if what == "mkdir" else ("filelock.FileLock.acquire",)), refuse)
    with pytest.raises(RunFolderError, match=rf"{tmp_path} cannot be written to \(Permission denied\); give another"):
        Ledger(tmp_path).__enter__()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=rf"{tmp_path} holds no run \(no recipe.yaml\)"):
        read(tmp_path)


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "recipe.yaml"
    ledger.write_text(path, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("power cut"))
    with pytest.raises(pytest.fail.Exception, match="power cut"):
        ledger.write_text(path, "new")
    assert path.read_text() == "old"


def test_writing_leaves_nothing_beside(tmp_path):
    ledger.write_text(tmp_path / "a", "1")
    ledger.write_text(tmp_path / "a", "2")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir() if path.is_file()] == [("a", "2")]


def test_imports_neither_torch_nor_ray():
    code = "import sys, raysweep.sweep.ledger; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
