"""The command `python -m raysweep.grid`: resolve a recipe, run it, say where the report is.

Exit status: 0 a report with a recommendation; 1 the sweep went wrong; 2 a mistake in what
was asked for, nothing was started; 130 interrupted, the report shows what there was.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from .recipe import Recipe, RecipeError, load, preset_names
from .sweep.ledger import RunFolderError

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
@click.option("--run-dir", type=click.Path(path_type=Path), help="The run folder [default: runs/<name>-<time>].")
@click.option("--address", help="Run on a Ray cluster, such as auto, instead of on this machine alone.")
def main(
    words: tuple[str, ...],
    list_presets: bool,
    plan_only: bool,
    as_json: bool,
    smoke: bool,
    run_dir: Path | None,
    address: str | None,
) -> None:
    """How deep should a pretrained network be fine-tuned on your images?

    NAME is a preset (--list shows them) or a YAML file; the quickstart when left out.
    KEY=VALUE changes a field of it, such as train.epochs=5 or grid.depth=[1,3,all].
    """
    try:
        if list_presets:
            _list()
            return
        if as_json and not plan_only:
            raise RecipeError("--json goes with --plan")
        recipe = _recipe(words)
        if smoke:
            from .sweep.smoke import shrink

            recipe = shrink(recipe)
        if plan_only:
            _show_plan(recipe, as_json)
            return
        status = _sweep(recipe, run_dir, address)
    except RecipeError as error:
        status = _refuse(error)
    except KeyboardInterrupt:
        click.echo("interrupted before anything was trained", err=True)
        status = INTERRUPTED
    sys.exit(status)


def _recipe(words: Sequence[str]) -> Recipe:
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise RecipeError(f"one recipe at a time, not {' and '.join(names)}; overrides are written key=value")
    return load(names[0] if names else None, [word for word in words if "=" in word])


def _list() -> None:
    width = max(len(name) for name in preset_names())
    for name in preset_names():
        click.echo(f"{name:{width}}  {load(name).description}")


def _show_plan(recipe: Recipe, as_json: bool) -> None:
    from .features.decide import decide
    from .sweep.plan import plan

    planned = plan(recipe)
    decisions = decide([one.trial for one in planned], recipe.features)
    configurations = [one.configuration for one in planned]
    if as_json:
        dumped = [configuration.model_dump(mode="json") for configuration in configurations]
        trials = [{name: row[name] for name in PLAN_FIELDS} for row in dumped]
        features = [decision.model_dump(mode="json") for decision in decisions]
        click.echo(json.dumps({"name": recipe.name, "trials": trials, "features": features}))
        return
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
    epochs = sum(one.epochs_planned for one in configurations)
    click.echo(f"{len(planned)} trials, at most {epochs} epochs in all; nothing was trained or fetched")


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
    click.echo(f"features to store: {size:,.0f} MiB; predicted saving {saved:,.0f} s of one process")


def _print_columns(table: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[index]) for line in table) for index in range(len(table[0]))]
    for line in table:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _sweep(recipe: Recipe, run_dir: Path | None, address: str | None) -> int:
    """Run a sweep and its report; returns the exit status."""
    from .engine import environment
    from .sweep.plan import plan

    folder = run_dir or Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
    planned = plan(recipe)
    files = environment.prepare(local=address is None)
    try:
        from .engine.run import run

        outcome = run(recipe, planned, folder, _command(), address, files)
    except RunFolderError as error:
        raise RecipeError(f"--run-dir: {error}") from None
    finally:
        if files is not None:
            shutil.rmtree(files, ignore_errors=True)
    return _answer(folder, outcome.interrupted, outcome.problem)


def _answer(folder: Path, interrupted: bool, problem: str) -> int:
    from .report import page

    path = page.build(folder)
    if interrupted:
        click.echo(f"interrupted; what there was is in {path}", err=True)
        return INTERRUPTED
    click.echo(page.answer([folder]))
    click.echo(f"report: {path}")
    if problem:
        click.echo(f"error: {problem}", err=True)
        return 1
    return 0


def _refuse(error: RecipeError) -> int:
    for problem in error.problems:
        click.echo(f"error: {problem}", err=True)
    return 2


def _command() -> str:
    return shlex.join(["python", "-m", "raysweep.grid", *sys.argv[1:]])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main(prog_name="python -m raysweep.grid")
