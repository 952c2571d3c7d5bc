"""The command `python -m raysweep.export`."""

import pytest
from click.testing import CliRunner

from raysweep.export import main
from raysweep.sweep import portable
from tests.sweep.made_models import write_model
from tests.sweep.test_portable import needs_onnx


def call(*words):
    return CliRunner().invoke(main, list(map(str, words)))


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "run" / "final" / "recommended", value_range=(0, 4095))


def test_a_torch_graph_is_written_and_checked(model, tmp_path):
    done = call(model.parents[1], "--torch-export", "--out", tmp_path / "out")
    assert (done.exit_code, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path / 'out' / 'model.pt2'}: its probabilities are those of {model} within ")
    assert second == "images with more than 8 bits are to be scaled before: 0 to 0, 4095 to 255"
    assert (tmp_path / "out" / "model.pt2").is_file()


@pytest.mark.slow
@needs_onnx
def test_both_go_beside_the_model(model):
    done = call(model, "--onnx", "--torch-export")
    assert (done.exit_code, done.stderr) == (0, "")
    assert {"model.onnx", "model.pt2"} < {path.name for path in model.iterdir()}
    assert done.stdout.count("its probabilities are those of") == 2


def test_a_graph_that_differs_ends_with_status_1(model, monkeypatch):
    monkeypatch.setattr(portable, "deviation", lambda *_: 0.25)
    done = call(model, "--torch-export")
    assert done.exit_code == 1
    assert done.stderr == "error: a graph differs from the model by 0.2 in a probability; do not serve it\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "error: nothing is asked for; say --onnx, --torch-export or both\n"),
        (["--torch-export", "--out", "{file}"], "cannot be written (File exists); say where by --out\n"),
    ],
)
def test_mistakes_are_answered_with_status_2(words, said, model):
    done = call(model, *(word.format(file=model / "model.json") for word in words))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.endswith(said)
    assert call("nowhere", "--onnx").exit_code == 2
