"""The command `python -m raysweep.report`."""

import pytest
from click.testing import CliRunner

from raysweep.report.__main__ import main
from tests.report.synthetic_runs import finished, planned


@pytest.fixture(autouse=True)
def blank(monkeypatch):
    """Pictures are not drawn, which takes most of the time."""
    monkeypatch.setattr("raysweep.report.page.png", lambda figure: b"")


def call(*words):
    return CliRunner().invoke(main, list(map(str, words)))


@pytest.fixture
def make_folder(make_run):
    return lambda name: make_run([finished(planned(depth), 0.9 + depth / 100) for depth in (1, 3)], name=name).folder


@pytest.fixture
def folder(make_folder):
    return make_folder("run")


def test_one_run(folder):
    result = call(folder)
    assert (result.exit_code, result.stderr) == (0, "")
    answer, page = result.stdout.splitlines()
    assert answer.startswith("Fine-tune the last 3 layers of tf_efficientnet_lite0 at lr 0.001: ")
    assert page == f"report: {folder / 'report' / 'index.html'}"
    assert (folder / "report" / "index.html").is_file()
    assert (folder / "results.csv").is_file()


def test_elsewhere(folder, tmp_path):
    assert call(folder, "--out", tmp_path / "out").stdout.endswith(f"report: {tmp_path / 'out' / 'index.html'}\n")
    assert (tmp_path / "out" / "index.html").is_file()
    assert not (folder / "report").exists()


def test_several_runs_are_compared(make_folder):
    first, second = make_folder("run0"), make_folder("run1")
    result = call(first, second)
    index = first / "report" / "compare" / "index.html"
    assert result.exit_code == 0
    assert result.stdout.endswith(f"\nreport: {index}\n")
    assert "tf_efficientnet_lite0 (run=run1)" in index.read_text(encoding="utf-8")


def test_another_tolerance_and_confidence(folder):
    result = call(folder, "--tolerance", "4", "--confidence", "0.95")
    assert result.stdout.startswith("Train only the classifier of tf_efficientnet_lite0 at lr 0.001: at most ")
    assert "(95 % confidence)" in result.stdout
    assert "with a tolerance of 4 points" in (folder / "report" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words", [("--tolerance", "-1"), ("--tolerance", "101"), ("--confidence", "0.5"), ("--confidence", "1")]
)
def test_out_of_range_exits_2(folder, words):
    result = call(folder, *words)
    assert result.exit_code == 2
    assert "is not in the range" in result.stderr
    assert not (folder / "report").exists()


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
