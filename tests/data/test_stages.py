"""A line when a stage took a while, a bar on a terminal."""

import io

import pytest
from rich.console import Console

from raysweep.data import stages
from raysweep.data.stages import stage


@pytest.mark.parametrize(("seconds", "told"), [(41.2, "decoded 60,000 images in 41 s\n"), (0.4, "")])
def test_a_line_when_piped(seconds, told, monkeypatch):
    clock = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(clock))
    screen = io.StringIO()
    with stage("decoding", "decoded", 60_000, console=Console(file=screen, width=30)) as advance:
        advance(60_000)
    assert screen.getvalue() == told


def test_a_bar_on_a_terminal():
    screen = io.StringIO()
    with stage("auditing", "audited", 1000, 2, Console(file=screen, force_terminal=True, width=100)) as advance:
        advance(1000)
    assert "auditing 1,000 images" in screen.getvalue()
    assert "50%" in screen.getvalue()


def test_what_failed_is_not_said_to_be_done(monkeypatch):
    monkeypatch.setattr(stages, "WORTH_A_LINE_S", 0)
    screen = io.StringIO()
    with pytest.raises(ValueError, match="broken"), stage("decoding", "decoded", 3, console=Console(file=screen)):
        raise ValueError("broken")
    assert screen.getvalue() == ""
