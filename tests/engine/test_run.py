"""Sweeps end to end on a local Ray cluster, through the command, as a person would run them.

Starting Ray takes most of the time, so that the sweeps are few and each is looked at by many tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import yaml
from click.testing import CliRunner
from pandas.testing import assert_frame_equal
from sklearn.metrics import f1_score

from raysweep import report
from raysweep.engine.features import FeaturesRecord
from raysweep.engine.trials import early_stopping, rungs_of
from raysweep.recipe import Recipe
from raysweep.report.page import answer as answer_of
from raysweep.sweep import evidence, ledger
from raysweep.sweep.choice import counted
from raysweep.sweep.plan import plan
from raysweep.sweep.rows import Configuration, EpochRow, Stop

ROOT = Path(__file__).parents[2]
LITTLE = {
    "name": "little",
    "data": {"dataset": "fake:4", "limit": 64, "image_size": 32},
    "grid": [
        {"backbone": "small_cnn", "depth": [1, 3], "lr": [0.01, 1e-6]},
        {"backbone": "small_cnn", "depth": "all", "lr": 1e30, "optimizer": "sgd"},  # diverges
    ],
    "model": {"weights": "none", "batch_norm": "recalibrated"},  # learns its four classes in two epochs
    "train": {"epochs": 2, "batch_size": 8},
    "asha": None,
}
NO_FINAL = "final.enabled=false"
SOUND = "grid.depth=[1, 3]"
"""Leaves the first block alone."""
COLUMNS = {
    "trial": str, "backbone": str, "depth": (int, str, list), "depth_label": str, "layers": int, "lr": float,
    "seed": int, "epoch": int, "phase": int, "epochs_planned": int, "train_loss": float, "train_accuracy": float,
    "val_loss": float, "val_accuracy": float, "val_images": int, "seconds": float, "lr_epoch": float,
    "trainable_tensors": int, "trainable_parameters": int, "total_parameters": int, "image_size": int,
    "batch_norm": str, "weights": str, "head": str, "workers": int, "cached": bool, "device": str, "pid": int,
    "time": float, "schema_version": int, "train_balanced_accuracy": float, "train_macro_f1": float,
    "val_balanced_accuracy": float, "val_macro_f1": float,
}  # fmt: skip
SHARES = [name for name in COLUMNS if name.startswith(("train_", "val_")) and name.endswith(("accuracy", "f1"))]
VOLATILE = ("seconds", "time", "pid")
PATIENCE_S = 240


class Running:
    """The command as a process, and every process that it starts."""

    def __init__(self, home: Path, *words: str) -> None:
        recipe = home / "little.yaml"
        recipe.write_text(yaml.safe_dump(LITTLE))
        env = os.environ | {"RAYSWEEP_CACHE": str(home / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "raysweep.grid", str(recipe), *words]
        self.out, self.err = (home / name for name in ("out.txt", "err.txt"))
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = psutil.Popen(command, cwd=home, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        self.descendants: set[psutil.Process] = set()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            try:
                self.descendants.update(self.process.children(recursive=True))
            except psutil.Error:
                return
            time.sleep(0.5)

    def end(self) -> SimpleNamespace:
        """Wait for the command, and a little for what it started."""
        try:
            status = self.process.wait(PATIENCE_S)
        except psutil.TimeoutExpired:
            self.process.send_signal(signal.SIGINT)
            pytest.fail(f"still running:\n{self.out.read_text()}\n{self.err.read_text()}")
        deadline = time.monotonic() + 15
        while (left := [one for one in self.descendants if _lives(one)]) and time.monotonic() < deadline:
            time.sleep(0.2)
        return SimpleNamespace(
            status=status,
            lines=self.out.read_text().splitlines(),
            err=self.err.read_text(),
            left=[" ".join(one.cmdline())[:200] for one in left if _lives(one)],
            started=len(self.descendants),
        )


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def sweep(home: Path, folder: str, *words: str) -> SimpleNamespace:
    ended = Running(home, "--run-dir", str(home / folder), *words).end()
    ended.run = ledger.read(home / folder) if (home / folder / "recipe.yaml").is_file() else None
    return ended


def states(run: ledger.Run) -> dict[str, ledger.Row]:
    """The last row of each trial, with what it was planned with."""
    last: dict[str, ledger.Row] = {}
    for row in run.trials:
        last[row["trial"]] = last.get(row["trial"], {}) | row
    return last


def lines_of(run: ledger.Run) -> list[ledger.Row]:
    """The rows of epochs.jsonl as they are on disk."""
    lines = (run.folder / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def steady(rows: list[ledger.Row]) -> dict[tuple[str, int], ledger.Row]:
    """Rows by trial and epoch, without what differs from one run to the next."""
    return {
        (row["trial"], row["epoch"]): {key: value for key, value in row.items() if key not in VOLATILE} for row in rows
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder of a user's own, with modules whose names others have used; none of them is ours to import."""
    folder = tmp_path_factory.mktemp("sweeps")
    for name in ("analysis", "benchmarks", "datasets", "ray_utils"):
        (folder / f"{name}.py").write_text(f"raise ImportError('the user's {name}.py was imported')\n")
    return folder


@pytest.fixture(scope="module")
def first(home) -> SimpleNamespace:
    """Four sound trials, and the final fit."""
    return sweep(home, "first", SOUND)


@pytest.fixture(scope="module")
def second(home, first) -> SimpleNamespace:
    """The same trials again with one that diverges; the features are there already."""
    return sweep(home, "second", NO_FINAL)


# ---- a sweep that goes well ----


@pytest.mark.ray
def test_status_and_states(first):
    assert first.status == 0, first.err
    found = states(first.run)
    assert len(found) == 4
    assert {row["state"] for row in found.values()} == {"finished"}
    assert {(row["epochs_completed"], row["stopped_early"]) for row in found.values()} == {(2, False)}
    for trial in found:
        assert [row["state"] for row in first.run.trials if row["trial"] == trial] == ["planned", "running", "finished"]
    assert {(row["depth"], row["lr"]) for row in found.values()} == {(d, lr) for d in (1, 3) for lr in (0.01, 1e-6)}


@pytest.mark.ray
def test_modules_of_the_users_folder_are_not_imported(home, first):
    assert (home / "analysis.py").is_file()
    assert (first.status, first.err) == (0, "")


@pytest.mark.ray
def test_rows(first):
    rows = lines_of(first.run)
    assert sorted((row["trial"], row["epoch"]) for row in rows) == sorted(
        (trial, epoch) for trial in states(first.run) for epoch in (1, 2)
    )
    for row in rows:
        for name, kind in COLUMNS.items():
            assert isinstance(row[name], kind), name
        assert row.keys() <= EpochRow.model_fields.keys() | Configuration.model_fields.keys() | {"optimizer"}
        assert len(SHARES) == 6 and all(0 <= row[name] <= 1 for name in SHARES)
        assert "val_top5" not in row  # of four classes it would say little
        assert row["seconds"] > 0
        plan = states(first.run)[row["trial"]]
        assert all(row[name] == plan[name] for name in ("backbone", "depth", "lr", "seed", "layers", "epochs_planned"))
        assert (row["workers"], row["cached"], row["device"], row["val_images"]) == (1, True, "cpu", 16)
        assert row["trainable_parameters"] == {1: 64 * 4 + 4, 3: 64 * 4 + 4 + 2 * 64 + 9 * 32 * 64}[row["depth"]]


@pytest.mark.ray
def test_lanes_stay_warm(first):
    """Four trials in at most as many processes as there are cores."""
    assert len({row["pid"] for row in first.run.epochs}) <= min(4, len(os.sched_getaffinity(0)))
    assert os.getpid() not in {row["pid"] for row in first.run.epochs}


@pytest.mark.ray
def test_features_were_shared(first):
    """Images of train and val, once for both depths."""
    record = FeaturesRecord.model_validate_json((first.run.folder / "features.json").read_text())
    (made,) = record.made
    assert (made.cuts, made.images, made.problem) == (2, 64 + 16, "")
    assert all(one.store for one in record.decisions)
    assert set(record.stored) == states(first.run).keys()


@pytest.mark.ray
def test_batch_norm_was_recalibrated_once(home, first, second):
    """By the first sweep before its trials; these, the final fit and the second sweep read the one file."""
    (path,) = (home / "cache" / "features").glob("*.safetensors")
    began = [row["time"] for row in first.run.trials if row["state"] == "running"]
    assert path.stat().st_mtime < min(began)
    assert (first.status, len(second.run.epochs) > 0) == (0, True)


@pytest.mark.ray
def test_last_rows_hold_what_images_contribute(first):
    """There is no early stopping, so there are no other rungs. For accuracy it is whether they are right."""
    for row in first.run.epochs:
        assert row.get("over", False) == (row["epoch"] == 2) == ("evidence" in row)
        if row["epoch"] == 2:
            assert evidence.unpack(row["evidence"]).mean() == row["val_accuracy"]


def assert_predictions_are_those_that_count(run, keep):
    """Of every finished trial: the epoch, and the scores of its row."""
    labels, classes, key = evidence.read_labels(run.folder)
    assert set(labels) <= set(range(classes))
    finished = [trial for trial, row in states(run).items() if row["state"] == "finished"]
    assert finished
    for trial in finished:
        row = counted(ledger.epoch_rows(run, trial), keep)[-1]
        found = evidence.read_predictions(run.folder, trial)
        assert (found.epoch, found.val_key, len(found.predicted)) == (row.epoch, key, row.val_images)
        assert (found.predicted == labels).mean() == pytest.approx(row.val_accuracy, abs=1e-9)
        assert -np.log(found.true_probability.astype(float)).mean() == pytest.approx(row.val_loss, rel=1e-5)
        f1 = f1_score(labels, found.predicted, labels=range(classes), average="macro", zero_division=0.0)
        assert f1 == pytest.approx(row.val_macro_f1)


@pytest.mark.ray
def test_predictions_are_those_of_the_rows(first):
    assert_predictions_are_those_that_count(first.run, "last")


@pytest.mark.ray
def test_final_model(first):
    final = first.run.finals["recommended"]
    assert final.trial in states(first.run)
    assert sum(map(sum, final.confusion)) == final.test_images == 20
    assert sum(final.confusion[k][k] for k in range(4)) == round(final.test_accuracy * 20)
    assert (final.train_images, final.class_names) == (64 + 16, tuple(f"class{k}" for k in range(4)))
    assert final.epochs == 2
    recall = [row[k] / sum(row) for k, row in enumerate(final.confusion)]
    assert final.test_balanced_accuracy == pytest.approx(sum(recall) / 4)
    assert 0 <= final.test_macro_f1 <= 1 and 0 <= final.test_calibration_error <= 1
    assert sum(images for _, _, images in final.calibration) == 20


@pytest.mark.ray
def test_the_recommended_is_refitted(first):
    """At the better learning rate of its depth."""
    final, found = first.run.finals["recommended"], report.load(first.run.folder).answer
    assert found.recommended["names"] == [final.trial]
    accuracies = {
        row["trial"]: row["val_accuracy"]
        for row in lines_of(first.run)
        if (row["depth"], row["epoch"]) == (final.depth, 2)
    }
    assert len(accuracies) == 2
    assert accuracies[final.trial] == max(accuracies.values())
    assert first.lines[-2] == answer_of([first.run.folder])


@pytest.mark.ray
def test_final_model_loads_and_predicts(first):
    """Its answers to the test images are those that the test accuracy was computed from."""
    from PIL import Image

    from raysweep.data import dataset as datasets
    from raysweep.recipe import Data
    from raysweep.sweep.export import load

    classify = load(first.run.final_folder("recommended"))
    dataset = datasets.load(Data(**LITTLE["data"]))
    images = [Image.fromarray(image.transpose(1, 2, 0)) for image in dataset.test.images()]
    names = [name for name, _ in classify(images)]
    right = [name == dataset.class_names[label] for name, label in zip(names, dataset.test.labels, strict=True)]
    assert sum(right) / len(right) == pytest.approx(first.run.finals["recommended"].test_accuracy)


@pytest.mark.ray
def test_report(first):
    folder = first.run.folder / "report"
    names = {path.name for path in folder.iterdir()}
    assert {"index.html", "summary.md"} <= names
    assert list((folder / "figures").glob("*.png"))
    assert (first.run.folder / "results.csv").is_file()
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert "small_cnn" in html
    assert "Shared computation" in html
    assert first.lines[-1] == f"report: {folder / 'index.html'}"


@pytest.mark.ray
def test_piped_output_is_a_line_a_trial(first):
    ended = [line for line in first.lines if line.startswith("[")]
    assert [line.partition("]")[0] for line in ended] == [f"[{n}/4" for n in (1, 2, 3, 4)]
    assert all(": finished after epoch 2/2, val accuracy " in line for line in ended)
    assert first.lines[0].startswith("4 trials → ")
    assert len(first.lines) <= 4 + 6
    assert not [line for line in first.lines if any(word in line for word in ("Ray", "ray.", "Tune", "INFO", "WARN"))]
    assert first.err == ""


@pytest.mark.ray
def test_run_folder_tells_what_was_run(first):
    about = first.run.about
    assert about["recipe"]["data"]["limit"] == 64
    assert about["recipe"]["grid"][0]["depth"] == [1, 3]
    assert about["versions"]["ray"] and about["command"].startswith("python -m raysweep.grid ")


@pytest.mark.ray
def test_nothing_of_ray_is_left(first, second):
    assert first.started > 2 and second.started > 2
    assert (first.left, second.left) == ([], [])


# ---- again, with a trial that diverges ----


@pytest.mark.ray
def test_same_recipe_same_rows(first, second):
    """Bit for bit, whether features were made in this run or found, and whatever the lanes did meanwhile."""
    expected, found = steady(lines_of(first.run)), steady(lines_of(second.run))
    assert len(expected) == 8
    found = {key: {name: row[name] for name in expected[key]} for key, row in found.items() if key in expected}
    assert found == expected


@pytest.mark.ray
def test_found_features_are_not_made_again(second):
    record = FeaturesRecord.model_validate_json((second.run.folder / "features.json").read_text())
    assert [one.images for one in record.made] == [0]
    assert not [line for line in second.lines if line.startswith("features:")]


@pytest.mark.ray
def test_status_with_a_failed_trial(second):
    assert second.status == 1, second.err


@pytest.mark.ray
def test_diverging_trial_leaves_the_others_alone(second):
    found = states(second.run)
    assert sorted(row["state"] for row in found.values()) == ["failed"] + 4 * ["finished"]
    (failed,) = (row for row in found.values() if row["state"] == "failed")
    assert (failed["depth"], failed["epochs_completed"]) == ("all", 0)
    assert second.run.finals == {}


@pytest.mark.ray
def test_failure_says_why(second):
    (failed,) = (row for row in states(second.run).values() if row["state"] == "failed")
    assert "the training loss is" in failed["error"]
    assert "lower lr=1e+30" in failed["error"]
    assert "Traceback" not in failed["error"] and "\n" not in failed["error"]
    (line,) = (line for line in second.lines if ": failed" in line)
    assert "lower lr=1e+30" in line


@pytest.mark.ray
def test_the_last_lines_name_the_failures(second):
    several, why = second.err.strip().splitlines()
    assert several == "error: 1 of 5 trials failed, so the comparison is incomplete"
    assert "lr 1e+30" in why and "the training loss is" in why


# ---- stopped by a person ----


@pytest.mark.ray
def test_interrupt(home):
    """Ctrl-C in the middle of a trial that would run for hours."""
    folder = home / "interrupted"
    running = Running(home, "--run-dir", str(folder), "grid.depth=[3]", "grid.lr=[0.01]", "train.epochs=1000000")
    deadline = time.monotonic() + PATIENCE_S
    while not (folder / "epochs.jsonl").is_file() or len(ledger.read(folder).epochs) < 3:
        assert running.process.poll() is None and time.monotonic() < deadline, running.err.read_text()
        time.sleep(0.2)
    running.process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    ended = running.end()
    assert ended.status == 130, ended.err
    assert time.monotonic() - asked < 60
    run = ledger.read(folder)
    (trial,) = states(run).values()
    assert trial["state"] == "interrupted"
    assert trial["epochs_completed"] == len(run.epochs) >= 3
    assert (folder / "report" / "index.html").is_file()
    report = folder / "report" / "index.html"
    how = f"python -m raysweep.grid --resume {folder} continues"
    assert ended.err.strip().splitlines()[-1] == f"interrupted; what there was is in {report}; {how}"
    assert "Traceback" not in ended.err
    assert run.finals == {}
    assert ended.left == []


# ---- learning rates that compete ----

RATES = (0.01, 1e-6, 0.02)
ONE_LANE = "resources.max_concurrent=1"
"""So that rows arrive in one order."""


@pytest.fixture(scope="module")
def guarded(home) -> list[SimpleNamespace]:
    """Three learning rates with three seeds, one of which learns nothing; in two orders of the grid."""
    words = (SOUND, "grid.seed=[0, 1, 2]", "asha.grace_epochs=1", "train.epochs=4", ONE_LANE, NO_FINAL)
    return [
        sweep(home, f"guarded-{place}", f"grid.lr={list(rates)}", *words)
        for place, rates in enumerate((RATES, RATES[::-1]))
    ]


@pytest.mark.ray
def test_a_rate_that_is_surely_behind_is_dropped(guarded):
    """Its first seed is the first of the depth to train, and finishes; the others are not started."""
    one = guarded[0]
    assert one.status == 0, one.err
    found = states(one.run)
    bad = {row["seed"]: row for row in found.values() if (row["depth"], row["lr"]) == (3, 1e-6)}
    assert [bad[seed]["state"] for seed in (0, 1, 2)] == ["finished", "dropped", "dropped"]
    assert [bad[seed]["epochs_completed"] for seed in (0, 1, 2)] == [4, 0, 0]
    assert Stop.model_validate(bad[1]["stop"]) == Stop.model_validate(bad[2]["stop"])
    assert bad[1]["stop"]["behind"] > 0.3
    assert not {bad[seed]["trial"] for seed in (1, 2)} & {row["trial"] for row in one.run.epochs}
    dropped = [line for line in one.lines if ": dropped (" in line]
    assert len(dropped) >= 2
    assert all(" points behind lr 0.0" in line for line in dropped)
    assert {line.partition("]")[0] for line in one.lines if line.startswith("[")} == {f"[{n}/18" for n in range(1, 19)}


@pytest.mark.ray
def test_what_was_decided_follows_from_the_rows(guarded):
    one = guarded[0]
    recipe = Recipe.model_validate(one.run.about["recipe"])
    rule = early_stopping(recipe, plan(recipe), rungs_of(recipe))
    for row in one.run.epochs:
        rule.report(EpochRow.model_validate({key: row[key] for key in row if key in EpochRow.model_fields}))
    found = states(one.run)
    ended = {trial: Stop.model_validate(row["stop"]) for trial, row in found.items() if "stop" in row}
    assert ended
    assert {trial: rule.stopped[trial] for trial in ended} == ended
    assert {found[trial]["state"] for trial in rule.stopped.keys() - ended.keys()} <= {"finished"}


@pytest.mark.ray
def test_the_order_of_rates_in_the_grid_changes_nothing(guarded):
    """The same rows, the same table of depths but for seconds and the run's name, and the same answer."""
    one, other = guarded
    assert one.run.about["recipe"]["grid"][0]["lr"] == other.run.about["recipe"]["grid"][0]["lr"][::-1]
    assert steady(lines_of(one.run)) == steady(lines_of(other.run))
    assert {trial: row["state"] for trial, row in states(one.run).items()} == {
        trial: row["state"] for trial, row in states(other.run).items()
    }
    answers = [report.load(each.run.folder).answer for each in guarded]
    told = [
        table.drop(columns=[name for name in table if "seconds" in name or name in ("run", "folders")])
        for table in (found.depths for found in answers)
    ]
    assert {"names", "lr", "status", "upper", "lower", "difference", "stopped_early"} <= set(told[0])
    assert_frame_equal(*told, check_exact=True)
    assert answers[0].verdict == answers[1].verdict
    assert one.lines[-2] == other.lines[-2]


@pytest.fixture(scope="module")
def plain(home) -> SimpleNamespace:
    """Plain ASHA by the loss: the first rate learns nothing, the second learns, the third's loss is enormous."""
    words = ("grid.depth=[3]", "grid.lr=[1e-6, 0.01, 1e4]", "objective=loss", "asha.guard=null", "asha.grace_epochs=1")
    return sweep(home, "plain", *words, ONE_LANE, NO_FINAL)


@pytest.mark.ray
def test_plain_asha_stops_who_is_below_the_median(plain):
    assert plain.status == 0, plain.err
    found = {row["lr"]: row for row in states(plain.run).values()}
    assert [found[lr]["state"] for lr in (1e-6, 0.01, 1e4)] == ["finished", "finished", "stopped"]
    assert (found[1e4]["epochs_completed"], found[1e4]["stopped_early"]) == (1, True)
    assert Stop.model_validate(found[1e4]["stop"]).behind is None
    (line,) = [line for line in plain.lines if ": stopped" in line]
    assert "(behind the trials before it at this rung)" in line


@pytest.mark.ray
def test_by_the_loss_the_lowest_is_recommended(plain):
    found = report.load(plain.run.folder).answer
    assert found.question.objective == "loss"
    assert found.recommended["lr"] == 0.01
    assert found.recommended["score"] == pytest.approx(-found.recommended["val_loss"], rel=1e-5)


# ---- networks that are each tested ----


@pytest.fixture(scope="module")
def networks(home) -> SimpleNamespace:
    """Two networks compared by macro-F1 over twelve classes, both refitted and tested."""
    grid = "[{backbone: small_cnn, depth: [1, 3], lr: 0.01}, {backbone: cnn_846k, depth: head, lr: 0.001}]"
    words = ("data.dataset=fake:12", "data.limit=96", "train.keep=best_loss", "train.schedule=cosine", "train.epochs=3")
    return sweep(
        home, "networks", f"grid={grid}", *words, "objective=macro_f1", "final.of=each-network", "asha.grace_epochs=1"
    )


@pytest.mark.ray
def test_each_network_is_refitted_and_tested(networks):
    assert networks.status == 0, networks.err
    run, found = networks.run, report.load(networks.run.folder)
    assert run.finals.keys() == {"small_cnn", "cnn_846k"}
    for name, final in run.finals.items():
        assert final.backbone == name
        assert {"model.safetensors", "model.json", "predictions.csv", "result.json"} <= {
            path.name for path in run.final_folder(name).iterdir()
        }
        rows = found.depths[found.depths["backbone"] == name]
        assert final.trial in rows.loc[rows["score"].idxmax(), "names"]
        assert final.epochs == evidence.read_predictions(run.folder, final.trial).epoch
        assert 0 <= final.test_top5 <= 1


@pytest.mark.ray
def test_both_are_in_the_table_of_tests(networks):
    text = (networks.run.folder / "report" / "summary.md").read_text(encoding="utf-8").replace("\\", "")
    rows = [line for line in text.partition("## Test")[2].splitlines() if line.startswith("|")][2:]
    assert len(rows) == 2
    for name, final in networks.run.finals.items():
        (row,) = [row for row in rows if f"networks: {name} |" in row]
        assert f"| {100 * final.test_accuracy:.1f} ± " in row
        assert f"| {final.test_loss:.3f} |" in row


@pytest.mark.ray
def test_configurations_are_compared_by_the_objective(networks):
    """The score is the mean of pseudo-values, close to macro-F1 itself; rows carry them."""
    found = report.load(networks.run.folder)
    assert found.answer.question.objective == "macro_f1"
    assert found.answer.from_predictions
    labels, classes, _ = evidence.read_labels(networks.run.folder)
    for row in found.depths.to_dict("records"):
        (trial,) = row["names"]
        own = evidence.read_predictions(networks.run.folder, trial)
        values = evidence.contributions("macro_f1", own.predicted, own.true_probability, labels, classes)
        assert row["score"] == pytest.approx(values.mean())
        last = ledger.epoch_rows(networks.run, trial)[-1]
        assert evidence.unpack(last.evidence) == pytest.approx(values, rel=1e-3, abs=1e-3)


@pytest.mark.ray
def test_predictions_are_those_of_the_epoch_with_the_lowest_loss(networks):
    assert_predictions_are_those_that_count(networks.run, "best_loss")
    assert all(0 <= row["val_top5"] <= 1 and 0 <= row["train_top5"] <= 1 for row in networks.run.epochs)


# ---- workers that train together ----


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_workers_are_one(home, first):
    """The same rows within rounding. A rate whose loss is enormous is stopped, and its second seed never started."""
    words = (
        "grid.depth=[3]", "grid.lr=[0.01, 1e4]", "grid.seed=[0, 1]", "resources.workers_per_trial=2", ONE_LANE,
        "asha.grace_epochs=1", "objective=loss", NO_FINAL,
    )  # fmt: skip
    ended = sweep(home, "two", *words)
    assert ended.status == 0, ended.err
    last = {(row["lr"], row["seed"]): row for row in states(ended.run).values()}
    assert [last[key]["state"] for key in ((0.01, 0), (0.01, 1), (1e4, 0), (1e4, 1))] == [
        "finished", "finished", "stopped", "dropped",
    ]  # fmt: skip
    assert last[1e4, 0]["stopped_early"] is True
    found = steady(lines_of(ended.run))
    assert {(row["lr"], row["seed"], epoch) for (_, epoch), row in found.items()} == {
        (0.01, 0, 1), (0.01, 0, 2), (0.01, 1, 1), (0.01, 1, 2), (1e4, 0, 1),
    }  # fmt: skip
    expected = {key: row for key, row in steady(lines_of(first.run)).items() if (row["depth"], row["lr"]) == (3, 0.01)}
    assert len(expected) == 2
    for key, other in expected.items():
        row = found[key]
        assert row["workers"] == 2
        assert row.keys() - {"evidence"} == other.keys() - {"evidence"}  # there is some at every rung
        for name in other.keys() - {"workers", "evidence"}:
            assert row[name] == (pytest.approx(other[name], rel=1e-4) if name.endswith("loss") else other[name]), name
    assert_predictions_are_those_that_count(ended.run, "last")
    assert ended.left == []


# ---- what is not started ----

CPUS = len(os.sched_getaffinity(0))


def refused(tmp_path, *words):
    """The one line that the command answers with, having started nothing."""
    import ray

    from raysweep.grid import main

    little = tmp_path / "little.yaml"
    little.write_text(yaml.safe_dump(LITTLE))
    before = set(psutil.Process().children(recursive=True))
    result = CliRunner().invoke(main, [str(little), *words])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert not ray.is_initialized()
    assert set(psutil.Process().children(recursive=True)) <= before
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ("resources.workers_per_trial=999",),
            ("resources.workers_per_trial=999", "needs 999 CPUs", f"there are {CPUS}"),
        ),
        (
            ("resources.workers_per_trial=3", "resources.cpus_per_worker=400"),
            ("resources.cpus_per_worker=400", "needs 1200 CPUs"),
        ),
        (("final.workers=999",), ("final.workers=999", "needs 999 CPUs")),
        (("resources.gpus_per_worker=99",), ("resources.gpus_per_worker=99", "needs 99 GPUs")),
        (
            ("resources.gpus_per_worker=0.5", "resources.workers_per_trial=2"),
            ("resources.gpus_per_worker=0.5", "cannot share a GPU"),
        ),
    ],
)
def test_what_never_fits_is_a_mistake(tmp_path, words, parts):
    line = refused(tmp_path, "--run-dir", str(tmp_path / "run"), *words)
    for part in parts:
        assert part in line
    assert not (tmp_path / "run").exists()


def test_run_folder_in_use(tmp_path):
    with ledger.Ledger(tmp_path / "run"):
        line = refused(tmp_path, "--run-dir", str(tmp_path / "run"))
        assert "in use by another sweep" in line and "--run-dir" in line
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]


def test_run_folder_of_an_earlier_run(tmp_path):
    with ledger.Ledger(tmp_path / "run") as book:
        book.describe({})
    assert "holds an unfinished run" in refused(tmp_path, "--run-dir", str(tmp_path / "run"))
