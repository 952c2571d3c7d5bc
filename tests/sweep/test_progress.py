import io

import pytest
from rich.console import Console

from raysweep.sweep.progress import Display
from tests.sweep.sample_rows import configuration, epoch_row


def row(trial, epoch=2, val_accuracy=0.53125):
    return epoch_row(trial, epoch, val_accuracy=val_accuracy)


@pytest.fixture
def display():
    def make(trials=("a", "b"), terminal=False, **changed):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False)
        return Display([configuration(trial, **changed) for trial in trials], console), console.file

    return make


def test_piped_output_is_a_line_for_each_trial(display):
    shown, out = display()
    with shown:
        shown.start("a")
        shown.start("b")
        for epoch in range(1, 3):
            shown.row(row("a", epoch))
        shown.end("a", "stopped")
        shown.end("b", "failed", "out of [memory]")
    assert out.getvalue().splitlines() == [
        "[1/2] resnet18 depth 3 lr 0.001 seed 0: stopped after epoch 2/4, val accuracy 0.5312",
        "[2/2] resnet18 depth 3 lr 0.001 seed 0: failed (out of [memory])",
    ]
    assert "\x1b" not in out.getvalue()


def test_a_line_tells_why_a_trial_was_not_started(display):
    shown, out = display()
    shown.end("a", "dropped", "2.0 ± 0.3 points behind lr 0.1 at epoch 2")
    assert out.getvalue() == (
        "[1/2] resnet18 depth 3 lr 0.001 seed 0: dropped (2.0 ± 0.3 points behind lr 0.1 at epoch 2)\n"
    )


def test_a_line_tells_the_grids_other_axes(display):
    shown, out = display(axes={"head": "mlp", "patience": None})
    shown.end("a", "finished")
    assert out.getvalue() == "[1/2] resnet18 depth 3 head=mlp patience=None lr 0.001 seed 0: finished\n"


def test_long_lines_are_not_broken(display):
    shown, out = display()
    shown.say("x" * 300)
    assert out.getvalue() == "x" * 300 + "\n"


def test_terminal_shows_one_live_view(display):
    shown, out = display(terminal=True)
    with shown:
        shown.start("a")
        shown.row(row("a"))
        shown.live.refresh()
        shown.end("a", "finished")
        shown.say("a line that stays")
    text = out.getvalue()
    assert "resnet18 depth 3 lr 0.001 seed 0: running after epoch 2/4" in text
    assert "[1/2]" not in text
    assert "a line that stays" in text


def test_terminal_still_tells_of_failures(display):
    shown, out = display(terminal=True)
    shown.end("a", "failed", "why")
    assert "failed (why)" in out.getvalue()


def view(shown):
    console = Console(file=io.StringIO(), width=100)
    console.print(shown._view())
    return console.file.getvalue()


def test_view(display):
    shown, _ = display(["a", "b", "c", "d"])
    assert "time left unknown" in view(shown)
    shown.start("a")
    shown.row(row("a"))
    shown.start("b")
    shown.row(row("b", val_accuracy=0.9))
    shown.end("b", "stopped")
    shown.end("c", "dropped")
    text = view(shown)
    assert "2/4" in text
    assert "2 stopped early, about 0:" in text
    assert text.count("running") == 1
    assert text.splitlines()[-1].split() == ["resnet18", "3", "90.0", "%"]


def test_view_while_images_pass_through_the_frozen_prefix(display):
    shown, _ = display()
    shown.features(30, 80)
    assert "frozen prefix" in view(shown)
    assert "30/80 images" in view(shown)
    shown.features(80, 80)
    assert "frozen prefix" not in view(shown)


def test_many_running_trials_are_not_all_listed(display):
    names = [f"t{index}" for index in range(20)]
    shown, _ = display(names)
    for name in names:
        shown.start(name)
    assert view(shown).count("running") == 8


def test_time_left(display, monkeypatch):
    """One of four trials is done and one half way: 1.5 of 4 in 30 seconds, so 50 are left."""
    shown, _ = display(["a", "b", "c", "d"])
    shown.row(row("a", 4))
    shown.end("a", "finished")
    shown.row(row("b"))
    monkeypatch.setattr("raysweep.sweep.progress.time.monotonic", lambda: shown.started + 30)
    assert "about 0:50 left" in view(shown)
