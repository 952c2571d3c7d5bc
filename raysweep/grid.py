"""The command `python -m raysweep.grid`: resolve a recipe, run it, say where the report is.

Exit status: 0 a report with a recommendation; 1 the sweep or some of its trials went wrong; 2 a mistake in what
was asked for, nothing was started; 130 interrupted, the report shows what there was and
`--resume` continues.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from .commands import refuse
from .recipe import Recipe, RecipeError, load, preset_names
from .sweep.ledger import Run, RunFolderError

if TYPE_CHECKING:
    from .engine.run import Outcome
    from .engine.storage import LocalCopy

PLAN_FIELDS = (
    "trial", "backbone", "depth", "lr", "seed", "trainable_tensors", "trainable_parameters", "total_parameters",
    "first_trainable", "layers", "network_layers", "epochs_planned", "phases", "image_size", "batch_norm", "weights",
    "head",
)  # fmt: skip

INTERRUPTED = 130


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, metavar="[NAME] [KEY=VALUE]...")
@click.option("--list", "list_presets", is_flag=True, help="The presets, a line each.")
@click.option("--plan", "plan_only", is_flag=True, help="Show every trial and what it trains; train and fetch nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --plan: one JSON object.")
@click.option("--smoke", is_flag=True, help="The same recipe end to end on fake images and random weights, one epoch.")
@click.option("--run-dir", help="The run folder, or s3://bucket/prefix [default: runs/<name>-<time>].")
@click.option("--resume", metavar="DIR", help="Go on with the interrupted run in this folder.")
@click.option("--lost-head", metavar="DIR", hidden=True, help="Conclude a run whose Ray is gone.")
@click.option("--address", help="Run on a Ray cluster, such as auto, instead of on this machine alone.")
def main(
    words: tuple[str, ...],
    list_presets: bool,
    plan_only: bool,
    as_json: bool,
    smoke: bool,
    run_dir: str | None,
    resume: str | None,
    lost_head: str | None,
    address: str | None,
) -> None:
    """How deep should a pretrained network be fine-tuned on your images?

    NAME is a preset (--list shows them) or a YAML file; the quickstart when left out.
    KEY=VALUE changes a field of it, such as train.epochs=5 or grid.depth=[1,3,all].
    """
    if as_json and not plan_only:
        sys.exit(refuse(RecipeError("--json goes with --plan")))
    if resume is not None and (plan_only or run_dir is not None):
        sys.exit(refuse(RecipeError("--resume goes with neither --plan nor --run-dir: it goes on in its folder")))
    if list_presets:
        do = _list
    elif lost_head is not None:
        do = partial(_conclude, lost_head)
    elif resume is not None:
        do = partial(_resume, resume, words, smoke, address)
    elif plan_only:
        do = partial(_show_plan, words, smoke, as_json)
    else:
        do = partial(_sweep, words, smoke, run_dir, address)
    sys.exit(_status_of(do))


def _status_of(do: Callable[[], int]) -> int:
    """The exit status of what is done; a mistake and a file that cannot be used are a sentence."""
    try:
        return do()
    except RecipeError as error:
        return refuse(error)
    except OSError as error:
        where = error.filename or "a file"
        return refuse(RecipeError(f"{where}: {error.strerror or error}; mend that and start again"))
    except KeyboardInterrupt:
        click.echo("interrupted before anything was trained", err=True)
        return INTERRUPTED


def _recipe(words: Sequence[str], smoke: bool, default: str | None = None) -> Recipe:
    """The recipe that the words ask for, of `default` where they name none."""
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise RecipeError(f"one recipe at a time, not {' and '.join(names)}; overrides are written key=value")
    recipe = load(names[0] if names else default, [word for word in words if "=" in word])
    if not smoke or (default and not names):
        return recipe
    from .sweep.smoke import shrink

    return shrink(recipe)


def _list() -> int:
    width = max(len(name) for name in preset_names())
    for name in preset_names():
        click.echo(f"{name:{width}}  {load(name).description}")
    return 0


def _show_plan(words: Sequence[str], smoke: bool, as_json: bool) -> int:
    import torch

    from .data import dataset
    from .engine.resources import this_machine
    from .features.decide import decide
    from .sweep.plan import plan

    recipe = _recipe(words, smoke)
    planned = plan(recipe)
    notes = dataset.shape(recipe.data).notes
    device = torch.device("cuda" if this_machine().gpus_per_worker(recipe) else "cpu")
    decisions = decide([one.trial for one in planned], recipe.features, device)
    configurations = [one.configuration for one in planned]
    if as_json:
        dumped = [configuration.model_dump(mode="json") for configuration in configurations]
        trials = [{name: row[name] for name in PLAN_FIELDS} for row in dumped]
        features = [decision.model_dump(mode="json") for decision in decisions]
        click.echo(json.dumps({"name": recipe.name, "trials": trials, "features": features, "notes": notes}))
        return 0
    header = ("backbone", "depth", "layers", "from", "tensors", "trainable", "of", "trials")
    groups = Counter(
        (one.backbone, one.depth_label, one.layers, one.first_trainable, one.trainable_tensors,
         one.trainable_parameters, one.total_parameters) for one in configurations
    )  # fmt: skip
    table = [header, *((f"{cell:,}" if isinstance(cell, int) else cell for cell in (*k, n)) for k, n in groups.items())]
    _print_columns([tuple(line) for line in table])
    for phases, number in Counter(one.phases for one in configurations if one.phases).items():
        click.echo(f"{number} trials in phases: {phases}")
    click.echo()
    _show_features(decisions)
    for note in notes:
        click.echo(note)
    epochs = sum(one.epochs_planned for one in configurations)
    click.echo(f"{len(planned)} trials, at most {epochs} epochs in all; nothing was trained or fetched")
    return 0


def _show_features(decisions: Sequence[Any]) -> None:
    """What is computed once and shared, for each cut that has a frozen prefix."""
    cuts = [one for one in decisions if one.prefix_ms_per_image]
    if not cuts:
        click.echo("no trial has a frozen prefix to share")
        return
    header = ("backbone", "depth", "stored", "MiB", "prefix ms/image", "predicted saving", "why")
    lines = [
        (
            one.backbone,
            one.depth_label,
            "yes" if one.store else "no",
            f"{one.mebibytes:,.1f}",
            f"{one.prefix_ms_per_image:.2f}",
            f"{one.predicted_saving_s:,.0f} s",
            one.reason,
        )
        for one in cuts
    ]
    _print_columns([header, *lines])
    saved = sum(one.predicted_saving_s for one in cuts if one.store)
    size = sum(one.mebibytes for one in cuts if one.store)
    kinds = f"computed in {cuts[0].precision} and stored as {cuts[0].stored_as}"
    click.echo(f"features to store: {size:,.0f} MiB, {kinds}; predicted saving {saved:,.0f} s of one process")


def _print_columns(table: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[index]) for line in table) for index in range(len(table[0]))]
    for line in table:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _resume(where: str, words: Sequence[str], smoke: bool, address: str | None) -> int:
    """Do what is missing of a run; returns the exit status."""
    from .engine.storage import LocalCopy, storage_of
    from .sweep import history, ledger

    with LocalCopy(storage_of(where)) as copy:
        copy.download()
        try:
            recorded = ledger.read(copy.folder)
        except RunFolderError as error:
            raise RecipeError(f"--resume: {error}") from None
        there = load(str(copy.folder / ledger.RECIPE))
        history.check_same(_recipe(words, smoke, str(copy.folder / ledger.RECIPE)), there, where)
        return _run(there, copy, address, recorded)


def _sweep(words: Sequence[str], smoke: bool, run_dir: str | None, address: str | None) -> int:
    """Run a sweep and its report; returns the exit status."""
    from .engine.storage import LocalCopy, storage_of

    recipe = _recipe(words, smoke)
    storage = storage_of(run_dir or f"runs/{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}")
    if not storage.is_local:
        storage.check()
    with LocalCopy(storage) as copy:
        return _run(recipe, copy, address, None)


def _leave(where: str) -> None:
    """Become a process that concludes the run: this one waits within Ray's own code for a head that is gone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    os.execve(sys.executable, [sys.executable, "-m", "raysweep.grid", "--lost-head", where], environment)  # noqa: S606


def _conclude(where: str) -> int:
    """Build the report of a run whose Ray is gone; returns the exit status."""
    from .engine.run import HEAD_IS_LOST, Outcome
    from .engine.storage import LocalCopy, storage_of

    with LocalCopy(storage_of(where)) as copy:  # the ledger is here
        return _answer(copy, Outcome(problem=HEAD_IS_LOST), _resumes(copy))


def _resumes(copy: LocalCopy) -> str:
    """The command that goes on with a run."""
    return f"python -m raysweep.grid --resume {shlex.quote(copy.storage.where)}"


def _run(recipe: Recipe, copy: LocalCopy, address: str | None, recorded: Run | None) -> int:
    from .engine import environment
    from .engine.interrupts import Interrupts
    from .engine.reaper import Reaper
    from .sweep.history import check_plan
    from .sweep.plan import plan

    planned = plan(recipe)
    if recorded is not None:
        check_plan(planned, recorded, copy.storage.where)
    where, again = copy.storage.where, _resumes(copy)
    ended = f"ended; {again} continues, python -m raysweep.report {shlex.quote(where)} builds the report"
    files = environment.prepare(local=address is None)
    with Interrupts(ended) as interrupts, Reaper(files) if files else nullcontext():
        from .engine.run import Place, run

        try:
            outcome = run(
                recipe, planned, Place(copy, address, files, interrupts, partial(_leave, where)), _command(), recorded
            )
        except RunFolderError as error:
            raise RecipeError(f"--run-dir: {error}") from None
        if outcome.interrupted:
            click.echo("interrupted; building the report of what there is", err=True)
        return _answer(copy, outcome, again)


def _answer(copy: LocalCopy, outcome: Outcome, again: str) -> int:
    """Build the report and say what there is to say; returns the exit status."""
    from .report import page
    from .sweep.ledger import read, written_to

    problems, answer = [outcome.problem] if outcome.problem else [], ""
    try:
        copy.fetch()
        facts = page.gather([read(copy.folder)])
        answer, failed = page.in_short(facts), page.failures(facts)
        path = page.write(facts)
    except OSError as error:  # RunFolderError among them
        problem = outcome.problem or written_to(copy.folder, error)
        if answer:
            click.echo(answer)
        click.echo(f"error: {problem}; there is no report", err=True)
        return INTERRUPTED if outcome.interrupted else 1
    if outcome.interrupted:
        click.echo(f"interrupted; what there was is in {path}; {again} continues", err=True)
        return INTERRUPTED
    click.echo(answer)
    click.echo(f"report: {path}")
    for problem in [*problems, *failed]:
        click.echo(f"error: {problem}", err=True)
    if problems and not problems[0].endswith("continues"):
        click.echo(f"{again} continues", err=True)
    return 1 if problems or failed else 0


def _command() -> str:
    return shlex.join(["python", "-m", "raysweep.grid", *sys.argv[1:]])


if __name__ == "__main__":
    main(prog_name="python -m raysweep.grid")
