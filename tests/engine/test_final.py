"""The final fit where no cluster is needed to see what it does; the fit itself is in test_run.py."""

import signal
import sys
from types import SimpleNamespace

import pytest

from raysweep.engine import final
from raysweep.recipe import Features, Recipe
from raysweep.sweep.rows import FinalResult, TrialJob
from tests.sweep.sample_rows import configuration

METRICS = {
    "test_accuracy": 0.5, "test_accuracy_without_duplicates": None, "duplicated_test_images": 0, "test_loss": 1.5,
    "test_images": 4, "train_images": 8, "train_loss": 1.25, "seconds": 2.0, "workers": 1, "class_names": ["a", "b"],
    "confusion": [[1, 1], [1, 1]],
}  # fmt: skip


@pytest.fixture
def job(tmp_path):
    (trial,) = Recipe.model_validate({"grid": {"backbone": "small_cnn"}}).trials()
    return TrialJob(
        name=trial.name, trial=trial, workers=1, cpus=1, gpus=0.0, storage=str(tmp_path / "ray"), features=Features(),
        refit=(2, 3),
    )  # fmt: skip


@pytest.fixture
def trainer(monkeypatch):
    """In the place of Ray Train's: `fit` is what a test makes it."""
    fake = SimpleNamespace(fit=lambda: None)
    monkeypatch.setattr(final, "TorchTrainer", lambda *_, **__: fake)
    return fake


def test_an_interrupt_is_the_sweeps_own(job, trainer, tmp_path):
    """Ray Train handles the signal itself and ends the process; the report would not be written."""

    def fit():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        signal.raise_signal(signal.SIGINT)

    before, trainer.fit = signal.getsignal(signal.SIGINT), fit
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
            final.refit(job, configuration(), tmp_path / "final")
        assert caught.type is KeyboardInterrupt
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_result_and_the_models_files(job, trainer, tmp_path):
    """The checkpoint moves to the run folder, and is not kept twice."""
    checkpoint = tmp_path / "ray" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.json").write_text("{}")
    trainer.fit = lambda: SimpleNamespace(metrics=METRICS | {"of": "Ray"}, checkpoint=SimpleNamespace(path=checkpoint))
    chosen = configuration(axes={"optimizer": "sgd"})
    result = final.refit(job, chosen, tmp_path / "final")
    shared = FinalResult.model_fields.keys() & set(dict(chosen))
    assert result == FinalResult(**METRICS, **{name: getattr(chosen, name) for name in shared}, epochs=5)
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["model.json"]
    assert not checkpoint.exists()


@pytest.mark.parametrize("lacks", ["metrics", "checkpoint"])
def test_a_fit_without_a_result_is_an_error(job, trainer, tmp_path, lacks):
    trainer.fit = lambda: SimpleNamespace(**{"metrics": METRICS, "checkpoint": SimpleNamespace()} | {lacks: None})
    with pytest.raises(RuntimeError, match="without a result"):
        final.refit(job, configuration(), tmp_path / "final")
