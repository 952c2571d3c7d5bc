"""A final fit: a configuration refitted on train + val and measured once on test.

A Ray Train run over the machine's cores or the cluster's GPUs, as nothing else runs then.
This is the one place that opens the test split.
"""

from __future__ import annotations

import math
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train.torch import TorchTrainer

from ..sweep.rows import Configuration, FinalResult, TrialJob
from .jobs import job_of, ray_folder, scaling, sharing_of, world_of

CALIBRATION_BINS = 15

if TYPE_CHECKING:
    import numpy as np

    from ..train.metrics import Predictions


def refit(job: TrialJob, chosen: Configuration, folder: Path) -> FinalResult:
    """Run the final fit, and leave the exported model and its predictions in a folder.

    Args:
        job: with `refit`, the epochs of each phase.
        chosen: the configuration that is refitted.
        folder: for the model.

    Raises:
        KeyboardInterrupt: Ctrl-C, which Ray Train answers with SystemExit.
    """
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"job": job.model_dump_json()},
        scaling_config=scaling(job),
        run_config=ray.train.RunConfig(name=f"final-{job.name}", storage_path=str(ray_folder(job))),
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
    if result.metrics is None or result.checkpoint is None:
        raise RuntimeError("the final fit ended without a result")
    shutil.copytree(result.checkpoint.path, folder, dirs_exist_ok=True)
    shutil.rmtree(result.checkpoint.path, ignore_errors=True)
    columns = {key: value for key, value in dict(chosen).items() if key in FinalResult.model_fields}
    return FinalResult.model_validate(columns | result.metrics | {"epochs": sum(job.refit or ())})


def _loop(space: dict[str, Any]) -> None:
    """One rank of the final fit."""
    from ..sweep import export, predictions
    from ..train.loop import DivergedError
    from ..train.metrics import predict
    from ..train.network import labelled
    from ..train.phases import Fit

    started = time.perf_counter()
    job = job_of(space)
    world, trial = world_of(job), job.trial
    fit = Fit(trial, sharing_of(job), world, refit=job.refit)
    losses = [measures.train_loss for measures in fit.epochs()]
    network, task = fit.network, fit.network.task
    found = predict(network.suffix, labelled(network, trial, "test", world.device), trial.train, world)
    if not math.isfinite(found.loss):
        raise DivergedError(f"the test loss is {found.loss} after the refit")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if world.rank == 0:
            export.save(Path(folder), network.whole(), trial, task.dataset.class_names, task.preparation)
            predictions.write(Path(folder), task.dataset, found.predicted.numpy(), found.confidence.numpy())
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        metrics = {
            **_scores(found, task.dataset.class_names, job.duplicated_test),
            "train_images": len(task.dataset.train) + len(task.dataset.val),
            "train_loss": losses[-1],
            "seconds": time.perf_counter() - started,
            "workers": world.size,
        }
        ray.train.report(metrics, checkpoint=checkpoint)


def _scores(found: Predictions, class_names: Sequence[str], duplicated: Sequence[int]) -> dict[str, Any]:
    """What the predictions of the test images amount to, by the names of `FinalResult`."""
    import numpy as np

    from ..data.findings import accuracy_without

    truth, predicted = found.labels.numpy(), found.predicted.numpy()
    classes = len(class_names)
    outputs = max(classes, int(predicted.max()) + 1)  # a kept classifier may say a class that the data set has not
    confusion = np.bincount(truth * outputs + predicted, minlength=classes * outputs).reshape(classes, outputs)
    scores = found.scores(classes)
    bins = calibration(found.confidence.numpy(), predicted == truth)
    return {
        **accuracy_without(predicted == truth, duplicated),
        "test_loss": scores.loss,
        "test_balanced_accuracy": scores.balanced_accuracy,
        "test_macro_f1": scores.macro_f1,
        "test_top5": scores.top5,
        "test_calibration_error": sum(n * abs(right - sure) for sure, right, n in bins) / len(truth),
        "calibration": bins,
        "test_images": len(truth),
        "class_names": list(class_names),
        "confusion": confusion[:, :classes].tolist(),
    }


def calibration(confidence: np.ndarray, right: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of images in each bin of confidence that holds any.

    The expected calibration error is the mean over images of the gap between the two
    (Guo et al. 2017, arXiv:1706.04599).

    Args:
        confidence: (n,) probability of the predicted class.
        right: (n,) bool.
    """
    import numpy as np
    from sklearn.calibration import calibration_curve

    share, mean = calibration_curve(right, confidence, n_bins=CALIBRATION_BINS, strategy="uniform")
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    counts = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=CALIBRATION_BINS)
    return [(float(a), float(b), int(n)) for a, b, n in zip(mean, share, counts[counts > 0], strict=True)]
