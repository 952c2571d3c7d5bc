"""What a trial may occupy, and how many run at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..recipe import Recipe, RecipeError

MOST_FINAL_WORKERS = 8


@dataclass(frozen=True)
class Machine:
    """CPUs and GPUs of this machine or of a cluster."""

    cpus: int
    gpus: int

    def gpus_per_worker(self, recipe: Recipe) -> float:
        """GPUs of one worker, `auto` resolved."""
        asked = recipe.resources.gpus_per_worker
        return float(min(1, self.gpus)) if asked == "auto" else float(asked)

    def check(self, recipe: Recipe) -> None:
        """Raise RecipeError if a trial, or the final fit, can never be placed."""
        asked, gpus = recipe.resources, self.gpus_per_worker(recipe)
        if asked.workers_per_trial > 1 and 0 < gpus < 1:
            raise RecipeError(
                f"resources.gpus_per_worker={gpus:g} with workers_per_trial={asked.workers_per_trial}: workers that "
                "train together cannot share a GPU; use workers_per_trial=1, or a whole GPU a worker"
            )
        for field, workers in (
            ("resources.workers_per_trial", asked.workers_per_trial),
            ("final.workers", recipe.final.workers),
        ):
            need = (workers or 1) * asked.cpus_per_worker
            if need > self.cpus:
                raise RecipeError(
                    f"{field}={workers} with resources.cpus_per_worker={asked.cpus_per_worker} needs {need} CPUs, but "
                    f"there are {self.cpus}; ask for fewer, or run on a cluster with --address"
                )
            if (workers or 1) * gpus > self.gpus:
                raise RecipeError(
                    f"{field}={workers} with resources.gpus_per_worker={gpus:g} needs {(workers or 1) * gpus:g} GPUs, "
                    f"but there are {self.gpus}; ask for fewer, or set resources.gpus_per_worker=0"
                )

    def lanes(self, recipe: Recipe) -> int:
        """How many trials run at a time."""
        asked, gpus = recipe.resources, self.gpus_per_worker(recipe)
        fit = self.cpus // (asked.workers_per_trial * asked.cpus_per_worker)
        if gpus:
            fit = min(fit, int(self.gpus / (asked.workers_per_trial * gpus)))
        return max(1, min(fit, asked.max_concurrent or fit))

    def final_workers(self, recipe: Recipe) -> int:
        """Ranks of the final fit: those asked for or else all, as far as they fit."""
        gpus = self.gpus_per_worker(recipe)
        by_cpu = self.cpus // recipe.resources.cpus_per_worker
        fit = min(by_cpu, int(self.gpus // max(1, gpus))) if gpus else by_cpu
        return max(1, min(recipe.final.workers or MOST_FINAL_WORKERS, fit))


def this_machine() -> Machine:
    """CPUs and GPUs that this process may use."""
    import torch

    return Machine(usable_cpus(), torch.cuda.device_count())


def usable_cpus() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
