"""The trials of a sweep as Ray Tune has them, without a cluster."""

import errno
from types import SimpleNamespace

import numpy as np
import pytest

from raysweep.engine.errors import KILLED, last_line, what_was_lost
from raysweep.engine.jobs import REPORT, job_of
from raysweep.engine.resources import Machine
from raysweep.engine.storage import PROBLEM, Storage
from raysweep.engine.trials import Jobs, _Recorder, early_stopping, in_order, rungs_of
from raysweep.recipe import Recipe
from raysweep.sweep.evidence import pack
from raysweep.sweep.history import History, history_of
from raysweep.sweep.ledger import Ledger, read
from raysweep.sweep.loggers import Loggers
from raysweep.sweep.plan import plan
from raysweep.sweep.progress import Display
from raysweep.sweep.rows import Report, Stop
from raysweep.sweep.rungs import Entrant, Guard, Halving
from tests.sweep.sample_rows import configuration, epoch_row

GRID = {"backbone": "small_cnn", "depth": [1, ["stage1", "head"]], "lr": [0.1, 0.2], "seed": [0, 1]}


def recipe(**more):
    return Recipe.model_validate({"grid": GRID, "data": {"dataset": "fake:4"}, "model": {"weights": "none"}} | more)


def rule_of(sweep):
    """The rule, of trials of which only the names and settings matter."""
    planned = [SimpleNamespace(name=trial.name, trial=trial) for trial in sweep.trials()]
    return early_stopping(sweep, planned, rungs_of(sweep))


# ---- order ----


def test_the_deepest_start_first_then_by_seed_then_by_rate():
    grid = GRID | {"depth": [1, "all", 2], "lr": [0.2, 0.1], "seed": [1, 0]}
    ordered = [(one.trial.depth, one.trial.seed, one.trial.lr) for one in in_order(plan(recipe(grid=grid)))]
    assert ordered == [(depth, seed, lr) for depth in ("all", 2, 1) for seed in (0, 1) for lr in (0.1, 0.2)]


def test_the_order_of_the_grid_does_not_matter():
    one, other = (in_order(plan(recipe(grid=GRID | {"lr": rates}))) for rates in ([0.1, 0.2], [0.2, 0.1]))
    assert one == other


# ---- early stopping as the recipe asks for it ----


@pytest.mark.parametrize(
    ("more", "rungs"),
    [
        ({"train": {"epochs": 20}}, (3, 6, 12)),
        ({"train": {"epochs": 20}, "asha": {"grace_epochs": 2, "reduction_factor": 3}}, (2, 6, 18)),
        ({"train": {"epochs": 3}}, ()),
        ({"grid": GRID | {"epochs": [2, 7]}}, (3, 6)),
        ({"train": {"phases": [{"depth": "head", "epochs": 4}, {"epochs": 3}]}}, (3, 6)),
        ({"train": {"epochs": 20}, "asha": None}, ()),
    ],
)
def test_rungs_are_below_the_epochs_of_the_longest_trial(more, rungs):
    assert rungs_of(recipe(**more)) == rungs


def test_without_asha_there_is_no_early_stopping():
    assert rule_of(recipe(asha=None)) is None


def missing(share, images=200):
    """Evidence of a trial that has so many of its images wrong."""
    return pack(np.arange(images) >= share * images)


def dropped(sweep, wrong):
    """Trials that a rule ends, if each has reported its share of images that are wrong after its first rung."""
    rule = rule_of(sweep)
    for trial in sweep.trials():
        rule.report(epoch_row(trial.name, 1, evidence=missing(wrong(trial)), val_accuracy=1 - wrong(trial)))
    return {trial for trial in sweep.trials() if trial.name in rule.stopped}


def test_the_guard_compares_rates_alone():
    """Not depths, seeds or what else the grid sweeps, however far behind they are."""
    grid = GRID | {"optimizer": ["sgd", "adam"], "head": ["linear", {"kind": "mlp", "sizes": [8, 4]}]}
    sweep = recipe(grid=grid, asha={"grace_epochs": 1})
    assert isinstance(rule_of(sweep), Guard)
    everything = {"seed": 0.0, "depth": 0.2, "optimizer": 0.1, "head": 0.3}

    def wrong(trial, by_rate):
        values = (trial.seed, trial.depth == 1, trial.train.optimizer == "sgd", trial.model.head.kind == "mlp")
        return sum(s * v for s, v in zip(everything.values(), values, strict=True)) + by_rate * (trial.lr == 0.2)

    assert dropped(sweep, lambda trial: wrong(trial, 0.0)) == set()
    assert dropped(sweep, lambda trial: wrong(trial, 0.2)) == {one for one in sweep.trials() if one.lr == 0.2}


def test_the_guard_drops_every_seed_of_a_rate():
    """One seed of the two is compared; the other one's trials are dropped as well."""
    sweep = recipe(grid=GRID | {"depth": 1}, asha={"grace_epochs": 1})
    rule = rule_of(sweep)
    for trial in sweep.trials():
        if trial.seed == 1:
            rule.report(epoch_row(trial.name, 1, evidence=missing(0.6 if trial.lr == 0.2 else 0.1)))
    assert rule.stopped.keys() == {trial.name for trial in sweep.trials() if trial.lr == 0.2}
    assert len(rule.stopped) == 2


def test_the_guard_is_as_the_recipe_says():
    """Twelve of 200 images more are wrong: 6 points, with a standard error of about 1.8."""

    def ended(**more):
        asha = {"grace_epochs": 1} | more.pop("asha", {})
        sweep = recipe(grid=GRID | {"seed": 0}, asha=asha, **more)
        return bool(dropped(sweep, lambda trial: 0.1 + 0.06 * (trial.lr == 0.2)))

    assert not ended()
    assert ended(asha={"guard": 2.5})
    assert not ended(asha={"guard": 2.5}, tolerance=2.0)
    assert ended(tolerance=0.0)


@pytest.mark.parametrize(
    ("within", "count"),
    [
        (["backbone", "depth", "seed"], 4),
        (["depth"], 2),
        ([], 1),
        (["lr", "optimizer"], 4),
        (["image_size", "phases", "head"], 2),
    ],
)
def test_in_plain_asha_trials_compete_with_those_equal_in_the_axes_named(within, count):
    """Each is worse than all before it, so that of each stratum the first alone goes on."""
    grid = GRID | {"optimizer": ["sgd", "adam"], "head": ["linear", {"kind": "mlp", "sizes": [8, 4]}]}
    sweep = recipe(grid=grid, asha={"grace_epochs": 1, "guard": None, "compare_within": within})
    assert isinstance(rule_of(sweep), Halving)
    places = {trial: place / 100 for place, trial in enumerate(sweep.trials())}
    assert len(sweep.trials()) - len(dropped(sweep, places.get)) == count


@pytest.mark.parametrize("objective", ["balanced_accuracy", "macro_f1", "loss", "accuracy"])
def test_plain_asha_goes_by_the_objective(objective):
    """One of two rates is better by the objective and worse by all else."""
    high = {"val_accuracy": 0.9, "val_balanced_accuracy": 0.9, "val_macro_f1": 0.9, "val_loss": 0.1}
    low = {"val_accuracy": 0.1, "val_balanced_accuracy": 0.1, "val_macro_f1": 0.1, "val_loss": 0.9}
    column = f"val_{objective}"
    sweep = recipe(grid=GRID | {"depth": 1, "seed": 0}, objective=objective, asha={"grace_epochs": 1, "guard": None})
    rule = rule_of(sweep)
    better, worse = (trial.name for trial in sweep.trials())
    rule.report(epoch_row(better, 1, **low | {column: high[column]}))
    rule.report(epoch_row(worse, 1, **high | {column: low[column]}))
    assert rule.stopped.keys() == {worse}


def test_trials_run_their_own_number_of_epochs():
    """A trial of one epoch ends by itself at the rung where others are stopped."""
    sweep = recipe(grid=GRID | {"epochs": [1, 3]}, asha={"grace_epochs": 1, "compare_within": []})
    rule = rule_of(sweep)
    for place, trial in enumerate(sweep.trials()):
        rule.report(epoch_row(trial.name, 1, val_accuracy=1 - place / 100, over=trial.train.epochs == 1))
    stopped = [trial for trial in sweep.trials() if trial.name in rule.stopped]
    assert stopped
    assert {trial.train.epochs for trial in stopped} == {3}


# ---- jobs ----


def test_a_job_has_all_that_its_process_needs(tmp_path):
    sweep = recipe(
        resources={"workers_per_trial": 2, "cpus_per_worker": 3}, features={"dtype": "bfloat16"}, objective="loss"
    )
    trial = sweep.trials()[1]
    job = Jobs(sweep, Machine(8, 2), str(tmp_path), "ray", ("a", "b"), (2, 4)).of(trial)
    assert (job.name, job.trial, job.workers, job.cpus, job.gpus) == (trial.name, trial, 2, 3, 1.0)
    assert (job.folder, job.features, job.stored, job.refit) == (str(tmp_path), sweep.features, ("a", "b"), None)
    assert (job.objective, job.rungs) == ("loss", (2, 4))
    assert job_of({"job": job.model_dump_json()}) == job


# ---- errors ----


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("Traceback (most recent call last):\n  File ...\nraysweep.train.loop.DivergedError: lower lr\n\n",
         "DivergedError: lower lr"),
        ("ray.exceptions.RayTaskError(RuntimeError): x\n  RuntimeError: out of memory", "RuntimeError: out of memory"),
        (ValueError("two\nlines"), "lines"),
        ("no error in it", "no error in it"),
        ("", ""),
        (RuntimeError(), ""),
    ],
)  # fmt: skip
def test_last_line(error, line):
    assert last_line(error) == line


# ---- rows into the ledger ----


class FakeTrial:
    """As far as the recorder touches one of Tune's trials."""

    def __init__(self, name, error_file=None):
        self.name, self.error_file = name, error_file

    def __str__(self):
        return self.name


@pytest.fixture
def recorded(tmp_path):
    """A recorder with a guard over two rates, and a reader of what it has written."""
    with Ledger(tmp_path / "run") as book:
        book.describe({})
        display = Display([configuration("a"), configuration("b")])
        rule = Guard({"a": Entrant("g", 0.1, 0), "b": Entrant("g", 0.2, 0)}, (1,), 0.005, 3.0)
        loggers = Loggers((), tmp_path / "run", "sweep", (), display.say)
        recorder = _Recorder(book, display, rule, Storage(str(tmp_path / "run")), History(), loggers)
        yield SimpleNamespace(recorder=recorder, rule=rule, read=lambda: read(tmp_path / "run"))


def send(recorded, trial, epoch, **more):
    """An epoch as it arrives: at the scheduler first, then at the recorder."""
    row = epoch_row(trial, epoch, **more)
    recorded.rule.report(row)
    recorded.recorder.on_trial_result(0, [], FakeTrial(trial), {REPORT: Report(row=row).model_dump_json()})


def complete(recorded, *trials):
    for trial in trials:
        recorded.recorder.on_trial_complete(0, [], FakeTrial(trial))


def last_states(recorded):
    return {row["trial"]: row for row in recorded.read().trials}


def test_every_epoch_is_written_once(recorded):
    recorded.recorder.on_trial_start(0, [], FakeTrial("a"))
    for epoch in (1, 2, 2, 1):
        send(recorded, "a", epoch)
    complete(recorded, "a")
    run = recorded.read()
    assert [row["epoch"] for row in run.epochs] == [1, 2]
    assert [row["state"] for row in run.trials] == ["running", "finished"]
    assert (run.trials[-1]["epochs_completed"], run.trials[-1]["stopped_early"]) == (2, False)


def test_what_was_compared_is_written_and_not_kept(recorded):
    """The driver of a long sweep would fill its memory."""
    send(recorded, "a", 1, evidence=missing(0.1))
    assert recorded.recorder.rows["a"].evidence is None
    send(recorded, "a", 2)
    first, second = recorded.read().epochs
    assert first["evidence"] == missing(0.1)
    assert "evidence" not in second


def test_a_trial_that_was_stopped_says_why_and_is_told_from_one_that_finished(recorded):
    send(recorded, "a", 1, evidence=missing(0.1))
    send(recorded, "b", 1, evidence=missing(0.6))
    send(recorded, "a", 2, evidence=missing(0.1), over=True)
    complete(recorded, "a", "b")
    good, bad = last_states(recorded).values()
    assert (good["state"], good["stopped_early"], "stop" in good) == ("finished", False, False)
    assert (bad["state"], bad["stopped_early"], bad["epochs_completed"]) == ("stopped", True, 1)
    stop = Stop.model_validate(bad["stop"])
    assert stop == recorded.rule.stopped["b"]
    assert (stop.epoch, stop.against, stop.behind) == (1, "lr 0.1", 0.5)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_trial_that_was_at_its_last_epoch_has_finished(recorded, epochs):
    """Early stopping decides of its other seeds; it ended by itself, when it was dropped or after that."""
    send(recorded, "a", 1, evidence=missing(0.1), over=True)
    for epoch in range(1, epochs + 1):
        send(recorded, "b", epoch, evidence=missing(0.6), over=epoch == epochs)
    complete(recorded, "a", "b")
    assert "b" in recorded.rule.stopped
    bad = last_states(recorded)["b"]
    assert (bad["state"], bad["stopped_early"], bad["epochs_completed"]) == ("finished", False, epochs)


def test_a_trial_that_is_not_started_is_dropped(recorded):
    send(recorded, "a", 1, evidence=missing(0.1))
    recorded.rule.stopped["b"] = stop = Stop(epoch=1, against="lr 0.1", behind=0.5, error=0.1)
    recorded.recorder.leave_out("b")
    (row,) = recorded.read().trials
    assert (row["trial"], row["state"], row["epochs_completed"]) == ("b", "dropped", 0)
    assert Stop.model_validate(row["stop"]) == stop
    assert recorded.recorder.display.ended == {"b": "dropped"}


def test_without_early_stopping_all_finish(recorded):
    recorded.recorder.rule = None
    send(recorded, "a", 1)
    complete(recorded, "a")
    assert last_states(recorded)["a"]["state"] == "finished"


@pytest.mark.parametrize(
    ("text", "error"),
    [("Failure # 1 (occurred at …)\nTraceback\nx.FooError: it is broken", "FooError: it is broken"), (None, None)],
)
@pytest.mark.parametrize("last", ["step", "experiment"])
def test_a_failed_trial_says_why(recorded, tmp_path, text, error, last):
    """Tune stores the error only after it has told of it."""
    send(recorded, "a", 1)
    trial = FakeTrial("a")
    recorded.recorder.on_trial_error(0, [], trial)
    assert recorded.read().trials == []
    if text is not None:
        trial.error_file = tmp_path / "error.txt"
        trial.error_file.write_text(text, encoding="utf-8")
    ends = (recorded.recorder.on_step_end, (0, [])), (recorded.recorder.on_experiment_end, ([],))
    for end, words in ends if last == "step" else ends[1:]:
        end(*words)
    (row,) = recorded.read().trials
    assert (row["state"], row["epochs_completed"]) == ("failed", 1)
    assert row["error"] == (error or KILLED)


def problem(recorded, trial, **more):
    report = Report(**more)
    recorded.recorder.on_trial_result(0, [], FakeTrial(trial), {REPORT: report.model_dump_json()})


@pytest.mark.parametrize("diverged", [True, False])
def test_a_trial_that_reports_a_problem_has_failed(recorded, diverged):
    send(recorded, "a", 1)
    problem(recorded, "a", problem="the loss is nan", diverged=diverged)
    complete(recorded, "a")
    row = last_states(recorded)["a"]
    assert (row["state"], row["error"], row.get("diverged")) == ("failed", "the loss is nan", diverged or None)


def test_a_warning_is_said_once(recorded, capsys):
    for trial in ("a", "b", "a"):
        problem(recorded, trial, warning="no room for checkpoints")
    assert capsys.readouterr().out.count("no room for checkpoints") == 1


def test_a_trial_that_goes_on_says_why(recorded, tmp_path, capsys):
    trial = FakeTrial("a", tmp_path / "error.txt")
    recorded.recorder.on_trial_start(0, [], trial)
    send(recorded, "a", 1)
    for number in (1, 2):
        with trial.error_file.open("a", encoding="utf-8") as file:
            file.write(
                f"Failure # {number} (occurred at …)\nThe actor died unexpectedly: its worker process has died.\n"
            )
        recorded.recorder.on_trial_recover(0, [], trial)
        recorded.recorder.on_trial_start(0, [], trial)
    notes = recorded.read().trials
    assert [(row["state"], row.get("failures"), row.get("error")) for row in notes] == [
        ("running", None, None), ("running", 1, KILLED), ("running", 2, KILLED),
    ]  # fmt: skip
    assert "goes on from its checkpoint after epoch 1/4" in capsys.readouterr().out.replace("\n", " ")


def test_checkpoints_of_a_trial_that_ended_are_removed(recorded, tmp_path):
    folders = [tmp_path / "run" / "checkpoints" / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / PROBLEM).write_text("{}")
    send(recorded, "a", 1, over=True)
    problem(recorded, "b", problem="out of memory")  # may be tried again
    complete(recorded, "a", "b")
    assert [folder.exists() for folder in folders] == [False, True]
    assert list(folders[1].iterdir()) == []  # what ended it once is not to end it at its next attempt


def test_a_full_disk_is_remembered(recorded, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("raysweep.sweep.ledger.os.write", full)
    with pytest.raises(OSError, match="its disk is full"):
        send(recorded, "a", 1)
    assert "its disk is full" in str(recorded.recorder.fault)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR", KILLED),
        ("ActorDiedError: The actor died because its node has died. Node Id: 1f", "the trial's node was lost"),
        ("The actor 5b84 is unavailable: The actor is temporarily unavailable: RPC error: Socket closed rpc_code: 14. "
         "The task may or may not have been executed on the actor.", "the trial's node was lost"),
        ("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
         "the machine ran out of memory, and Ray ended the trial's process"),
        ("Traceback\nValueError: wrong", "ValueError: wrong"),
        ("", KILLED),
    ],
)  # fmt: skip
def test_what_ray_says_is_put_plainly(text, plain):
    assert what_was_lost(text) == plain


# ---- what was recorded before ----


def again(tmp_path, history):
    """A recorder of a sweep that goes on."""
    with Ledger(tmp_path / "run", resume=True) as book:
        rule = Guard({"a": Entrant("g", 0.1, 0), "b": Entrant("g", 0.2, 0)}, (1,), 0.005, 3.0)
        display = Display([configuration("a"), configuration("b")])
        loggers = Loggers((), tmp_path / "run", "sweep", (), display.say)
        return _Recorder(book, display, rule, Storage(str(tmp_path / "run")), history, loggers)


def test_a_recorder_goes_on_from_what_was_recorded(recorded, tmp_path):
    """Rows are not doubled, and an end that the killed process did not write is written."""
    send(recorded, "a", 1, evidence=missing(0.1))
    send(recorded, "b", 1, evidence=missing(0.6))
    history = history_of(recorded.read())
    recorded.recorder.ledger.__exit__()
    other = again(tmp_path, history)
    assert other.replayed == {"b"}
    assert last_states(recorded)["b"]["state"] == "stopped"
    other.on_trial_result(0, [], FakeTrial("a"), {REPORT: Report(row=epoch_row("a", 1)).model_dump_json()})
    other.on_trial_result(0, [], FakeTrial("a"), {REPORT: Report(row=epoch_row("a", 2)).model_dump_json()})
    assert [(row["trial"], row["epoch"]) for row in recorded.read().epochs] == [("a", 1), ("b", 1), ("a", 2)]
