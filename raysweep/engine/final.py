"""A final fit: a configuration refitted on train + val and measured once on test.

A Ray Train run over the machine's cores or the cluster's GPUs, as nothing else runs then.
This is the one place that opens the test split.
"""

from __future__ import annotations

import json
import math
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import ray.train
from ray.train.torch import TorchTrainer

from ..sweep.rows import Configuration, EpochRow, FinalResult, TrialJob
from .jobs import failures, job_of, scaling, sharing_of, world_of
from .storage import CHECKPOINTS, Storage

CALIBRATION_BINS = 15

if TYPE_CHECKING:
    import numpy as np

    from ..train.ddp import World
    from ..train.metrics import Predictions
    from ..train.phases import Fit


class FinalFitError(RuntimeError):
    """A final fit that came to no result."""


def refit(job: TrialJob, chosen: Configuration) -> FinalResult:
    """Run the final fit, and leave the exported model and its predictions in its folder.

    Args:
        job: with `refit`, the epochs of each phase, and `target`, the folder below the run's.
        chosen: the configuration that is refitted.

    Raises:
        KeyboardInterrupt: Ctrl-C, which Ray Train answers with SystemExit.
        FinalFitError: it came to no result.
    """
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"job": job.model_dump_json()},
        scaling_config=scaling(job),
        run_config=ray.train.RunConfig(
            name=f"{job.name}-{uuid4().hex[:8]}",  # Train goes on by itself in a run of the same name
            storage_path=job.ray_folder,
            failure_config=failures(job),
        ),
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:  # Train's own answer to Ctrl-C
        signal.signal(signal.SIGINT, handler)
        signal.raise_signal(signal.SIGINT)
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
    storage = Storage(job.folder)
    found = json.loads(storage.read(_measured_file(job)))
    storage.remove_folder(f"{CHECKPOINTS}/{job.name}")
    if "problem" in found:
        raise FinalFitError(found["problem"])
    columns = {key: value for key, value in dict(chosen).items() if key in FinalResult.model_fields}
    return FinalResult.model_validate(columns | found | {"epochs": sum(job.refit or ())})


def _loop(space: dict[str, Any]) -> None:
    """One rank of the final fit. A loss that is no number is so on every rank, and not tried again."""
    from ..nets.task import expect
    from ..train.loop import DivergedError

    job = job_of(space)
    world = world_of(job)
    expect(job.snapshots)
    try:
        found = _fitted(job, world)
    except DivergedError as error:
        found = {"problem": str(error)}
    if world.rank == 0:
        Storage(job.folder).write(_measured_file(job), json.dumps(found).encode())


def _measured_file(job: TrialJob) -> str:
    """Where rank 0 leaves what the fit came to, for the sweep: Train keeps no metrics without a checkpoint."""
    return f"{CHECKPOINTS}/{job.name}/measured"


def _fitted(job: TrialJob, world: World) -> dict[str, Any]:
    """Refit, test, and write the model's files; returns fields of `FinalResult`."""
    from ..train.loop import DivergedError
    from ..train.metrics import predict
    from ..train.network import labelled

    started = time.perf_counter()
    trial = job.trial
    fit, row = _refitted(job, world)
    network, task = fit.network, fit.network.task
    test = labelled(network, trial, "test", world.device, precision=fit.prefix_precision)
    found = predict(network.suffix, test, trial.train, world)
    if not math.isfinite(found.loss):
        raise DivergedError(f"the test loss is {found.loss} after the refit")
    if world.rank == 0:
        _write(job, fit, found)
    return {
        **_scores(found, task.dataset.class_names, job.duplicated_test),
        "train_images": len(task.dataset.train) + len(task.dataset.val),
        "train_loss": row.train_loss,
        "seconds": time.perf_counter() - started,
        "workers": world.size,
    }


def _refitted(job: TrialJob, world: World) -> tuple[Fit, EpochRow]:
    """The fit after its last epoch, and that epoch's row; from its checkpoint where it was interrupted."""
    from ..train.phases import Fit, Saving
    from .saving import Saver

    saver = Saver(job, world)
    saved = saver.read()
    fit = Fit(job.trial, sharing_of(job), world, job.refit, saved, Saving(saver.due, saver.keep))
    for measures in fit.epochs():
        saver.take(fit, measures)
    return fit, saver.rows[-1]


def _write(job: TrialJob, fit: Fit, found: Predictions) -> None:
    """The model and what it predicts of the test images, into the run folder."""
    from ..sweep import export, predictions

    network, task = fit.network, fit.network.task
    target = Storage(job.folder).below(job.target)
    with tempfile.TemporaryDirectory() as folder:
        export.save(Path(folder), network.whole(), job.trial, task.dataset.class_names, task.preparation)
        predictions.write(Path(folder), task.dataset, found.predicted.numpy(), found.confidence.numpy())
        for path in sorted(Path(folder).iterdir()):
            target.write(path.name, path.read_bytes())


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
