"""The final fit: the best configuration refitted on train + val and measured once on test.

A Ray Train run over the machine's cores or the cluster's GPUs, as nothing else runs then.
This is the one place that opens the test split.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from raysweep.trial import scaling, sources, world

MODEL_FOLDER = "model"


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
    result = trainer.fit()
    if result.metrics is None or result.checkpoint is None:
        raise RuntimeError("the final fit ended without a result")
    return result.metrics, Path(result.checkpoint.path)


def _loop(config: dict[str, Any]) -> None:
    import tempfile

    import torch
    from sklearn.metrics import confusion_matrix
    from torch.nn import functional as F

    from raysweep import export
    from raysweep.assembly import assemble, labelled
    from raysweep.recipe import Trial
    from raysweep.sources import Joined
    from raysweep.training import Labelled, predict, train

    started = time.perf_counter()
    trial = Trial.model_validate(config["trial"])
    with world(config["cpus"], config["gpus"]) as here:
        parts = assemble(trial, here.device)
        learned = sources(parts, trial, ("train", "val"), here.device, config)
        first, second, test = learned["train"], learned["val"], labelled(parts, trial, "test", here.device)
        both = Labelled(Joined(first.source, second.source), torch.cat([first.labels, second.labels]))
        rows = train(
            parts.suffix, trial.train, trial.lr, trial.seed, both, None,
            batch_norm=trial.model.batch_norm, flip="hflip" in trial.data.augment, world=here,
        )  # fmt: skip
        losses = [row["train_loss"] for row in rows]
        scores, labels = predict(parts.suffix, test, trial.train, here)
        class_names = parts.base.dataset.class_names
        classes = len(class_names)
        confusion = torch.from_numpy(confusion_matrix(labels, scores.argmax(1), labels=range(classes)))
        loss = torch.tensor([F.cross_entropy(scores, labels, reduction="sum")], dtype=torch.float64)
        confusion, loss = here.sum(confusion), here.sum(loss)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if here.rank == 0:
                network = parts.trained_network()
                export.save(Path(folder), network, trial, class_names, parts.base.preparation)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            count = int(confusion.sum())
            metrics = {
                "test_accuracy": int(confusion.trace()) / count,
                "test_loss": float(loss) / count,
                "test_images": count,
                "train_images": len(both.labels),
                "train_loss": losses[-1],
                "seconds": time.perf_counter() - started,
                "class_names": list(class_names),
                "confusion": confusion.tolist(),
                "workers": here.size,
            }
            ray.train.report(metrics, checkpoint=checkpoint)
