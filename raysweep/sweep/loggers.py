"""Rows of epochs sent to experiment trackers while a sweep runs: TensorBoard, MLflow, Weights & Biases.

The run folder stays what a run is read from. Each trial is a run of the tracker, named as its row of
the table of trials is, with the configuration as its parameters and the numbers of every epoch as
`train/loss`, `val/accuracy` and so on. TensorBoard's and MLflow's files go into the run folder unless
MLFLOW_TRACKING_URI names a server. Who you are, the libraries learn from their own files and variables.

A tracker that fails is left out from then on, with a warning: it must not end a sweep.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ..recipe import RecipeError
from .rows import Configuration, EpochRow, State

Numbers = dict[str, float]


class Logger(Protocol):
    """Where rows of trials are sent to."""

    def epoch(self, configuration: Configuration, epoch: int, numbers: Numbers) -> None:
        """A trial ended an epoch."""
        ...

    def end(self, trial: str, state: State) -> None:
        """A trial ended."""
        ...

    def close(self) -> None:
        """The sweep ended."""
        ...


class RunPerTrial:
    """Base of loggers that have a run for each trial, begun with its first row and ended with the trial."""

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}

    def begin(self, configuration: Configuration) -> Any:
        """A trial's run."""
        raise NotImplementedError

    def send(self, run: Any, epoch: int, numbers: Numbers) -> None:
        """An epoch of a trial, to its run."""
        raise NotImplementedError

    def finish(self, run: Any, state: State) -> None:
        """End a run."""
        raise NotImplementedError

    def epoch(self, configuration: Configuration, epoch: int, numbers: Numbers) -> None:
        """See `Logger`."""
        if configuration.trial not in self.runs:
            self.runs[configuration.trial] = self.begin(configuration)
        self.send(self.runs[configuration.trial], epoch, numbers)

    def end(self, trial: str, state: State) -> None:
        """See `Logger`."""
        if trial in self.runs:
            self.finish(self.runs.pop(trial), state)

    def close(self) -> None:
        """See `Logger`."""
        for trial in list(self.runs):
            self.end(trial, "interrupted")


class TensorBoard(RunPerTrial):
    """A folder of events for each trial, below `tensorboard/` of the run folder."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        self.folder = folder / "tensorboard"

    def begin(self, configuration: Configuration) -> Any:
        """See `RunPerTrial`."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / label(configuration)))

    def send(self, run: Any, epoch: int, numbers: Numbers) -> None:
        """See `RunPerTrial`."""
        for key, value in numbers.items():
            run.add_scalar(key, value, epoch)

    def finish(self, run: Any, state: State) -> None:
        """See `RunPerTrial`."""
        run.close()


class MLflow(RunPerTrial):
    """An MLflow run for each trial, in an experiment that has the recipe's name."""

    def __init__(self, folder: Path, name: str) -> None:
        from mlflow.tracking import MlflowClient

        super().__init__()
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}")
        found = self.client.get_experiment_by_name(name)
        self.experiment = found.experiment_id if found else self.client.create_experiment(name)
        self.sweep = str(folder)

    def begin(self, configuration: Configuration) -> str:
        """The id of the run that an interrupted sweep began, else of a new one."""
        tags = {"raysweep.trial": configuration.trial, "raysweep.sweep": self.sweep}
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        with suppress(IndexError):
            return str(self.client.search_runs([self.experiment], wanted)[0].info.run_id)
        run = self.client.create_run(self.experiment, run_name=label(configuration), tags=tags)
        for key, value in configuration.columns().items():
            self.client.log_param(run.info.run_id, key, str(value)[:500])
        return str(run.info.run_id)

    def send(self, run: str, epoch: int, numbers: Numbers) -> None:
        """See `RunPerTrial`."""
        for key, value in numbers.items():
            self.client.log_metric(run, key, value, step=epoch)

    def finish(self, run: str, state: State) -> None:
        """See `RunPerTrial`."""
        self.client.set_terminated(run, {"failed": "FAILED", "interrupted": "KILLED"}.get(state, "FINISHED"))


class WandB(RunPerTrial):
    """A run of Weights & Biases for each trial, in a project that has the recipe's name; files in the run folder."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        self.folder, self.project = folder, name

    def begin(self, configuration: Configuration) -> Any:
        """See `RunPerTrial`."""
        import wandb

        return wandb.init(
            project=self.project,
            group=self.folder.name,
            name=label(configuration),
            id=f"{self.folder.name}-{configuration.trial}",
            resume="allow",
            reinit="create_new",
            dir=str(self.folder),
            config=configuration.columns(),
        )

    def send(self, run: Any, epoch: int, numbers: Numbers) -> None:
        """See `RunPerTrial`."""
        run.log({"epoch": epoch, **numbers}, step=epoch)

    def finish(self, run: Any, state: State) -> None:
        """See `RunPerTrial`."""
        run.finish(exit_code=int(state == "failed"))


KINDS: dict[str, Callable[[Path, str], Logger]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


class Loggers:
    """The trackers that a recipe names.

    Args:
        names: of `KINDS`.
        folder: the run folder, on this machine.
        name: of the recipe.
        planned: the trials that there will be.
        warn: is told of a tracker that fails.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        name: str,
        planned: Sequence[Configuration],
        warn: Callable[[str], None],
    ) -> None:
        self.folder, self.name, self.warn = folder.resolve(), name, warn
        self.trials = {configuration.trial: configuration for configuration in planned}
        self.names, self.open = list(names), dict[str, Logger]()

    def row(self, row: EpochRow) -> None:
        """Send a row to all."""
        self._tell(lambda one: one.epoch(self.trials[row.trial], row.epoch, numbers_of(row)))

    def end(self, trial: str, state: State) -> None:
        """Tell all that a trial ended."""
        self._tell(lambda one: one.end(trial, state))

    def close(self) -> None:
        """Write what is not written yet."""
        self._tell(lambda one: one.close())

    def _tell(self, action: Callable[[Logger], None]) -> None:
        for name in list(self.names):
            try:
                if name not in self.open:
                    self.open[name] = KINDS[name](self.folder, self.name)
                action(self.open[name])
            except Exception as error:  # a network, a full disk, a login: whatever its library raises
                self.names.remove(name)
                self.warn(f"warning: {name} is left out from now on: {' '.join(str(error).split())[:200]}")


def check(names: Sequence[str]) -> None:
    """Raise RecipeError if the package of a named tracker is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise RecipeError(f'loggers={name} needs the package {name}: pip install "raysweep[{name}]"')


def label(configuration: Configuration) -> str:
    """A trial's name for a person, and for a folder."""
    one = configuration
    words = f"{one.backbone} depth {one.depth_label} lr {one.lr:g} seed {one.seed} {one.trial}"
    return "".join(letter if letter.isalnum() or letter in "._-+" else "-" for letter in words)


def numbers_of(row: EpochRow) -> Numbers:
    """The numbers of an epoch by the names that trackers group by: `train/loss`, `val/accuracy`, `seconds`."""
    found: Numbers = {}
    for name, value in row.model_dump(exclude_none=True).items():
        split, _, score = name.partition("_")
        if isinstance(value, float) and split in ("train", "val"):
            found[f"{split}/{score}"] = value
    return found | {"seconds": row.seconds}
