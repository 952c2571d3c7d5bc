"""The command `python -m raysweep.report`."""

import pytest
from click.testing import CliRunner

from raysweep.report.__main__ import main
from tests.report.synthetic_runs import epoch_rows, planned


def call(*words):
    return CliRunner().invoke(main, list(map(str, words)))


@pytest.fixture
def make_folder(make_run):
    plan = planned(3)
    return lambda name: make_run([(plan, "finished", epoch_rows(plan, 0.9))], name=name).folder


@pytest.fixture
def folder(make_folder):
    return make_folder("run")


def test_one_run(folder):
    result = call(folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{folder / 'report' / 'index.html'}\n"
    assert (folder / "report" / "index.html").is_file()


def test_elsewhere(folder, tmp_path):
    assert call(folder, "--out", tmp_path / "out").stdout == f"{tmp_path / 'out' / 'index.html'}\n"
    assert (tmp_path / "out" / "index.html").is_file()
    assert not (folder / "report").exists()


def test_several_runs_are_compared(make_folder):
    first, second = make_folder("run0"), make_folder("run1")
    result = call(first, second)
    index = first / "report" / "compare" / "index.html"
    assert (result.exit_code, result.stdout) == (0, f"{index}\n")
    assert "tf_efficientnet_lite0 (run=run1)" in index.read_text(encoding="utf-8")


def test_folder_without_a_run_exits_2_with_one_sentence(tmp_path):
    result = call(tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "holds no run" in line


def test_a_recipe_that_cannot_be_read_exits_2_with_one_sentence(tmp_path):
    (tmp_path / "recipe.yaml").write_text("recipe: [")
    result = call(tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")


def test_without_a_folder():
    assert call().exit_code == 2
