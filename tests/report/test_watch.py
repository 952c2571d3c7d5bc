"""The report of a sweep that is running."""

import pytest
from click.testing import CliRunner

from raysweep.report import watch as watching
from raysweep.report.__main__ import main
from raysweep.report.watch import watch
from raysweep.sweep.ledger import Ledger, RunFolderError, in_use
from tests.report.synthetic_runs import finished, planned
from tests.sweep.sample_rows import epoch_row


@pytest.fixture(autouse=True)
def blank(monkeypatch):
    """Pictures are not drawn, which takes most of the time."""
    monkeypatch.setattr("raysweep.report.page.png", lambda figure: b"")


@pytest.fixture
def folder(make_run):
    return make_run([finished(planned(depth), 0.9 + depth / 100) for depth in (1, 3)]).folder


def page_of(folder):
    return (folder / "report" / "index.html").read_text(encoding="utf-8")


def test_a_folder_is_in_use_while_a_ledger_holds_it(folder):
    assert not in_use(folder)
    with Ledger(folder, resume=True):
        assert in_use(folder)
    assert not in_use(folder)


def test_a_report_is_built_for_new_rows_until_the_sweep_ends(folder):
    said, slept = [], []
    book = Ledger(folder, resume=True)
    book.__enter__()

    def sleep(seconds):
        slept.append(seconds)
        assert 'http-equiv="refresh" content="15"' in page_of(folder)
        if len(slept) == 2:  # nothing was new before
            book.epoch(epoch_row("new", 1))
        if len(slept) == 3:
            book.__exit__()

    watch([folder], None, None, None, said.append, sleep)
    assert len(slept) == 3
    assert min(slept) >= watching.EVERY_S
    assert len(said) == 2
    assert "2 of 2 trials ended" in said[0]
    assert said[0].endswith(f": {folder / 'report' / 'index.html'}")


def test_the_command_ends_with_the_answer_and_a_page_that_stays(folder):
    done = CliRunner().invoke(main, [str(folder), "--watch"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("Fine-tune the last 3 layers")
    assert 'http-equiv="refresh"' not in page_of(folder)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with Ledger(tmp_path), pytest.raises(RunFolderError, match="holds no run"):
        watch([tmp_path], None, None, None, print)


def test_ctrl_c_ends_with_130(folder, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("raysweep.report.__main__.watch", interrupted)
    assert CliRunner().invoke(main, [str(folder), "--watch"]).exit_code == 130
