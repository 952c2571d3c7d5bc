"""The table of trials, the failures, the provenance."""

from raysweep.report import page
from raysweep.report.sections import trials
from tests.report.synthetic_runs import epoch_rows, finished, planned


def test_every_trial_with_why_it_ended(make_run):
    stopped = planned(1, lr=0.1)
    outcomes = [
        finished(planned(1), 0.9),
        (stopped, "stopped", epoch_rows(stopped, 0.5, 3)),
        (planned(1, lr=0.1, seed=1), "dropped", []),
    ]
    section = trials.trials(page.gather([make_run(outcomes)]))
    assert [row["state"] for row in section.table] == ["finished", "stopped", "dropped"]
    assert [row["epochs completed"] for row in section.table] == ["6 of 6", "3 of 6", "0 of 6"]
    reason = "7.1 ± 1.2 points behind lr 0.001 at epoch 3"
    assert [row["stopped early"] for row in section.table] == ["no", reason, reason]


def test_failures_by_name(make_run):
    section = trials.failures(page.gather([make_run([(planned("all", seed=4), "failed", [])])]))
    assert section.folded == (("tf_efficientnet_lite0 with all layers, lr 0.001, seed 4", "CUDA <out> of memory"),)
    assert trials.failures(page.gather([make_run([finished(planned(1), 0.9)], name="well")])) is None


def test_how_each_run_was_made(make_run):
    runs = [make_run([finished(planned(1), 0.9)], name=name, command=f"run {name}") for name in ("one", "two")]
    section = trials.provenance(page.gather(runs))
    assert [name for name, _ in section.folded] == ["one", "two"]
    assert ["command: run one" in section.folded[0][1], "command: run two" in section.folded[1][1]] == [True, True]
