import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from raysweep.sweep import ledger
from raysweep.sweep.ledger import Ledger, RunFolderError, is_finished, read
from raysweep.sweep.rows import FinalResult, Stop
from tests.sweep.sample_rows import configuration, epoch_row

ABOUT = {"recipe": {"name": "été"}, "versions": {"torch": "2"}, "host": "here", "command": "c", "started": "now"}
HOLD = """
import sys, time
from pathlib import Path
from raysweep.sweep.ledger import Ledger
with Ledger(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
FINAL = {
    "trial": "a", "backbone": "small_cnn", "depth": ["stage1", "head"], "depth_label": "stage1+head", "layers": 3,
    "lr": 0.1, "seed": 0, "epochs": 2, "test_accuracy": 0.5, "test_accuracy_without_duplicates": None,
    "duplicated_test_images": 0, "test_loss": 1.5, "test_images": 4, "train_images": 8, "train_loss": 1.25,
    "seconds": 2.0, "workers": 1, "class_names": ["a", "b"], "confusion": [[1, 1], [1, 1]],
}  # fmt: skip
"""As the first edition's final/result.json holds it."""
SCORES = {
    "test_balanced_accuracy": 0.5, "test_macro_f1": 0.45, "test_top5": None, "test_calibration_error": 0.1,
    "calibration": [[0.6, 0.5, 4]],
}  # fmt: skip


@pytest.fixture
def book(tmp_path):
    with Ledger(tmp_path / "runs" / "one") as writer:
        writer.describe(ABOUT)
        yield writer


# ---- rows ----


def test_rows_are_readable_while_the_writer_is_open(book):
    book.plan([configuration(depth=("layer1", "fc"), depth_label="layer1+fc")])
    book.trial("a", "running")
    book.epoch(epoch_row(epoch=1, val_accuracy=0.5))
    assert len(read(book.folder).epochs) == 1
    book.epoch(epoch_row(epoch=2, val_accuracy=0.75))
    run = read(book.folder)
    assert run.about == ABOUT
    assert [(row["epoch"], row["val_accuracy"]) for row in run.epochs] == [(1, 0.5), (2, 0.75)]
    assert [(row["trial"], row["state"]) for row in run.trials] == [("a", "planned"), ("a", "running")]
    assert run.trials[0]["depth"] == ["layer1", "fc"]
    assert run.trials[0]["time"] <= run.trials[1]["time"]
    assert (run.finals, run.features) == ({}, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_in_no_row(value):
    """Training ends with such a loss; JSON could not hold it."""
    with pytest.raises(ValidationError, match="finite number"):
        epoch_row(val_loss=value)


def test_rows_of_epochs_repeat_what_was_planned(book):
    one = configuration(axes={"optimizer": "sgd", "patience": None})
    book.plan([one])
    book.epoch(epoch_row())
    (planned,), row = read(book.folder).trials, json.loads((book.folder / "epochs.jsonl").read_text())
    columns = one.model_dump(mode="json")
    assert columns.items() <= planned.items()
    assert (planned["optimizer"], planned["patience"]) == (row["optimizer"], row["patience"]) == ("sgd", None)
    assert columns.keys() - row.keys() == {"axes"}
    assert {key: row[key] for key in columns.keys() & row.keys()} == {
        key: columns[key] for key in columns.keys() & row.keys()
    }
    assert row["schema_version"] == planned["schema_version"] == 2


def test_what_is_read_of_epochs_does_not_repeat_what_was_planned(book):
    """Unless it differs, as of a trial that is in no plan."""
    book.plan([configuration(axes={"optimizer": "sgd", "patience": None})])
    book.epoch(epoch_row())
    (row,) = read(book.folder).epochs
    assert row == epoch_row().model_dump(mode="json", exclude_none=True, exclude={"val_by_step", "shared", "over"}) | {
        "time": row["time"]
    }
    file = book.folder / "epochs.jsonl"
    file.write_text(file.read_text().replace('"optimizer": "sgd"', '"optimizer": "adam"'))
    assert read(book.folder).epochs[0] == row | {"optimizer": "adam"}
    (book.folder / "trials.jsonl").unlink()
    assert read(book.folder).epochs[0]["backbone"] == configuration().backbone


def test_a_row_says_when_the_driver_had_it(book):
    book.epoch(epoch_row(epoch=1, time=12.5))
    book.epoch(epoch_row(epoch=2))
    assert read(book.folder).epochs[0]["time"] == 12.5
    assert read(book.folder).epochs[1]["time"] > 1e9


def test_epochs_of_a_trial_return_as_they_were_reported(book):
    """In order of epochs; of two rows for one epoch the later counts."""
    steps = [{"step": 5, "epoch": 0.5, "val_loss": 2.0, "val_accuracy": 0.25}]
    book.plan([configuration(axes={"optimizer": "sgd"}), configuration("b")])
    rows = [epoch_row(epoch=2, phase=2, shared=True, time=2.0), epoch_row(epoch=1, val_by_step=steps, time=3.0)]
    for row in (epoch_row(epoch=2, time=1.0), epoch_row("b"), *rows):
        book.epoch(row)
    assert ledger.epoch_rows(read(book.folder), "a") == rows[::-1]


def test_a_row_is_one_line(book):
    book.trial("a", "failed", error="two\nlines\u2028three")
    assert (book.folder / "trials.jsonl").read_bytes().count(b"\n") == 1
    assert [row["error"] for row in read(book.folder).trials] == ["two\nlines\u2028three"]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_half_written_last_line_is_ignored(book, cut):
    book.epoch(epoch_row(epoch=1))
    whole = read(book.folder).epochs
    half = (book.folder / "epochs.jsonl").read_text(encoding="utf-8").rstrip("\n")[:-cut]
    with (book.folder / "epochs.jsonl").open("a", encoding="utf-8") as file:
        file.write(half)
    assert read(book.folder).epochs == whole
    assert len(whole) == 1


def test_a_row_says_only_what_there_is_to_say(book):
    book.epoch(epoch_row())
    book.epoch(epoch_row(epoch=2, over=True, shared=True, evidence="bits:2:wA=="))
    first, second = read(book.folder).epochs
    assert {"over", "shared", "evidence", "val_by_step", "val_top5"}.isdisjoint(first)
    assert (second["over"], second["shared"], second["evidence"]) == (True, True, "bits:2:wA==")


def test_a_row_tells_why_a_trial_was_not_started(book):
    stop = Stop(epoch=3, against="lr 0.001", behind=0.125, error=0.0125)
    book.trial("a", "dropped", epochs_completed=0, stop=stop)
    (row,) = read(book.folder).trials
    assert (row["state"], row["epochs_completed"], Stop.model_validate(row["stop"])) == ("dropped", 0, stop)


def test_features_are_read(book):
    (book.folder / "features.json").write_text('{"decisions": [], "made": []}', encoding="utf-8")
    assert read(book.folder).features == {"decisions": [], "made": []}


# ---- final fits ----


def write_final(folder, **changed):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(FINAL | changed), encoding="utf-8")


@pytest.mark.parametrize("more", [{"schema_version": 2} | SCORES, SCORES, {"run": "as a later edition might add"}])
def test_a_final_result_is_read(book, more):
    write_final(book.folder / "final" / "recommended", **more)
    (final,) = read(book.folder).finals.values()
    assert isinstance(final, FinalResult)
    assert (final.test_accuracy, final.depth, final.confusion) == (0.5, ("stage1", "head"), ((1, 1), (1, 1)))
    unsaid = dict.fromkeys(SCORES) | {"calibration": []}
    kept = {name: value for name, value in more.items() if name in FinalResult.model_fields}
    assert final.model_dump(mode="json") == FINAL | unsaid | kept | {"schema_version": 2}


def test_final_fits_have_names_and_folders(book):
    for name, trial in (("resnet18", "a"), ("small_cnn", "b")):
        write_final(book.folder / "final" / name, trial=trial)
    (book.folder / "final" / "broken-off").mkdir()
    run = read(book.folder)
    assert {name: final.trial for name, final in run.finals.items()} == {"resnet18": "a", "small_cnn": "b"}
    assert run.final_folder("small_cnn") == book.folder / "final" / "small_cnn"


def test_the_first_editions_final_fit_has_no_name(book):
    write_final(book.folder / "final")
    run = read(book.folder)
    assert {name: final.trial for name, final in run.finals.items()} == {"": "a"}
    assert run.final_folder("") == book.folder / "final"


# ---- one writer, one run ----


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
        book.epoch(epoch_row())
    before = read(tmp_path).epochs
    for _ in range(2):  # the refusal holds no lock
        with pytest.raises(
            RunFolderError, match=rf"{tmp_path} holds an unfinished run; --resume {tmp_path} continues it"
        ):
            Ledger(tmp_path).__enter__()
    assert read(tmp_path).epochs == before
    assert len(before) == 1


@pytest.mark.parametrize(
    ("states", "final", "finished"),
    [
        (["finished"], False, True),
        (["finished"], True, False),  # the final fit is missing
        (["running"], False, False),
        (["running", "finished"], False, True),
        (["finished", "running"], False, False),
        (["interrupted"], False, False),
        (["failed"], True, True),
        (["dropped"], False, True),
        ([], False, False),
    ],
)
def test_what_an_earlier_run_has_left_to_do(tmp_path, states, final, finished):
    with Ledger(tmp_path) as book:
        book.describe({"recipe": {"final": {"enabled": final}}})
        book.plan([configuration("a")])
        for state in states:
            book.trial("a", state)
    assert is_finished(read(tmp_path)) == finished
    with pytest.raises(RunFolderError, match="an earlier run" if finished else "an unfinished run"):
        Ledger(tmp_path).__enter__()


# ---- going on ----


def test_a_folder_without_a_run_can_be_no_resumed_one(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        read(tmp_path)


@pytest.mark.parametrize("torn", ['{"trial": "a", "epo', "", '{"trial": "a"}'])
def test_what_was_half_written_is_cut_off_before_the_next_line(tmp_path, torn):
    with Ledger(tmp_path) as book:
        book.describe(ABOUT)
        book.plan([configuration("a")])
        book.epoch(epoch_row("a", 1))
    with (tmp_path / "epochs.jsonl").open("a") as file:
        file.write(torn)
    with Ledger(tmp_path, resume=True) as book:
        book.plan([configuration("a")])
        book.epoch(epoch_row("a", 2))
    run = read(tmp_path)
    assert [row["epoch"] for row in run.epochs] == [1, 2]
    assert run.epochs[1].keys() == run.epochs[0].keys()
    assert [row["state"] for row in run.trials] == ["planned"]


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    """The disk takes twenty bytes more, and later has room again."""
    real, room = os.write, [10**9]

    def write(descriptor, content):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real(descriptor, content[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr("raysweep.sweep.ledger.os.write", write)
    with Ledger(tmp_path) as book:
        book.describe(ABOUT)
        book.epoch(epoch_row("a", 1))
        room[0] = 20
        with pytest.raises(RunFolderError, match="its disk is full; free some space, then --resume"):
            book.epoch(epoch_row("a", 2))
        assert (tmp_path / "epochs.jsonl").read_bytes().count(b"\n") == 1
        assert (tmp_path / "epochs.jsonl").read_bytes().endswith(b"\n")
        room[0] = 10**9
        book.epoch(epoch_row("a", 2))
    assert [row["epoch"] for row in read(tmp_path).epochs] == [1, 2]


def test_a_run_folder_that_is_gone_is_said(tmp_path):
    with pytest.raises(RunFolderError, match="was removed while the sweep ran"), Ledger(tmp_path / "run") as book:
        shutil.rmtree(tmp_path / "run")
        book.epoch(epoch_row("a", 1))


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
    with pytest.raises(RunFolderError, match=rf"{re.escape(str(tmp_path))} holds no run \(no recipe.yaml\)"):
        read(tmp_path)
