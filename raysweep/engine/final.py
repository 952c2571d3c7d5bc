"""The final fit: the best configuration refitted on train + val and measured once on test.

A Ray Train run over the machine's cores or the cluster's GPUs, as nothing else runs then.
This is the one place that opens the test split.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from raysweep.trial import scaling, sharing, world

RESULT = (
    "test_accuracy",
    "test_accuracy_without_duplicates",
    "duplicated_test_images",
    "test_loss",
    "test_images",
    "train_images",
    "train_loss",
    "seconds",
    "workers",
    "class_names",
    "confusion",
)
"""What a final fit reports."""


def refit(config: dict[str, Any], workers: int, storage: Path) -> tuple[dict[str, Any], Path]:
    """Run the final fit.

    Args:
        config: as for `trial.run`; the trial's `train.epochs` says how long.
        workers: ranks that train together.
        storage: folder for Ray Train's own files.

    Returns:
        The result (`test_accuracy`, `test_loss`, `confusion`, …) and the folder with the exported model.
    """
    trainer = TorchTrainer(
        _loop,
        train_loop_config=config,
        scaling_config=scaling(workers, config["cpus"], config["gpus"]),
        run_config=ray.train.RunConfig(name=f"final-{config['name']}", storage_path=str(storage)),
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except SystemExit:  # how Ray Train answers Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
    if result.metrics is None or result.checkpoint is None:
        raise RuntimeError("the final fit ended without a result")
    return result.metrics, Path(result.checkpoint.path)


def _loop(config: dict[str, Any]) -> None:
    import tempfile

    import numpy as np
    import torch
    from torch.nn import functional as F

    from raysweep import export, predictions
    from raysweep.assembly import labelled
    from raysweep.audit import accuracy_without
    from raysweep.phases import Fit
    from raysweep.recipe import Trial
    from raysweep.training import predict

    started = time.perf_counter()
    trial = Trial.model_validate(config["trial"])
    with world(config["cpus"], config["gpus"]) as here:
        fit = Fit(trial, sharing(config), here, refit=True)
        losses = [row["train_loss"] for row in fit.rows()]
        parts, dataset = fit.parts, fit.parts.base.dataset
        test = labelled(parts, trial, "test", here.device)
        scores, labels = predict(parts.suffix, test, trial.train, here)
        loss = here.sum(torch.tensor([F.cross_entropy(scores, labels, reduction="sum")], dtype=torch.float64))
        best = torch.zeros(2, len(test.labels), dtype=torch.float64)  # every rank fills in its share
        own = here.share(torch.arange(len(test.labels)))
        best[:, own] = torch.stack(scores.softmax(1).max(1)).double()
        probabilities, predicted = here.sum(best).numpy()
        truth, predicted = test.labels.numpy(), predicted.astype(int)
        classes = len(dataset.class_names)
        confusion = np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if here.rank == 0:
                network = parts.trained_network()
                export.save(Path(folder), network, trial, dataset.class_names, parts.base.preparation)
                predictions.write(Path(folder), dataset, predicted, probabilities)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            metrics = {
                **accuracy_without(predicted == truth, config["duplicated_test"]),
                "test_loss": float(loss) / len(truth),
                "test_images": len(truth),
                "train_images": len(dataset.train) + len(dataset.val),
                "train_loss": losses[-1],
                "seconds": time.perf_counter() - started,
                "class_names": list(dataset.class_names),
                "confusion": confusion.tolist(),
                "workers": here.size,
            }
            ray.train.report(metrics, checkpoint=checkpoint)
