"""The page: sections, figures, summary and tables of one run folder or several.

Writes index.html, which fetches nothing (figures embedded, style and script inline), the
figures as PNG files, summary.md and results.csv. Several folders make one comparison.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jinja2
import pandas as pd

from ..files import write_text
from ..sweep.ledger import Run, read
from . import statistics, tables, wording
from .facts import Facts, Section, name_of
from .figures.style import png
from .sections import comparison, final, trials
from .sections.audit import audit
from .sections.features import features
from .sections.predictions import classes, samples

SECTIONS: tuple[Callable[[Facts], Section | None], ...] = (
    comparison.accuracy,
    comparison.overfitting,
    comparison.cost,
    comparison.depths,
    final.test,
    audit,
    samples,
    final.confusion,
    classes,
    comparison.curves,
    comparison.rates,
    features,
    trials.trials,
    trials.failures,
    trials.provenance,
)
"""The page from top to bottom."""
COMPARABLE = ("dataset", "root", "limit", "val_fraction", "test_fraction", "split_seed")
"""Runs equal in these fields of `data` are measured on the same validation images."""


def build(folder: Path) -> Path:
    """Write the report on one run folder; returns its index.html.

    Raises:
        RunFolderError: the folder holds no run.
    """
    return _write(gather([read(folder)]), folder / "report")


def answer(folder: Path) -> str:
    """The report's answer in a sentence."""
    return headline(gather([read(folder)]))


def compare(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write one report on several runs, by default into the first one's report/compare/; returns its index.html."""
    return _write(gather([read(folder) for folder in folders]), out or folders[0] / "report" / "compare")


def gather(runs: Sequence[Run]) -> Facts:
    """The tables over one run or several, in which `run` tells them apart."""
    table = statistics.with_series(pd.concat([tables.trials_table(run) for run in runs], ignore_index=True))
    epochs = pd.concat([tables.epochs_table(run) for run in runs], ignore_index=True)
    advice = statistics.recommend(table) if _comparable(runs) else None
    return Facts(tuple(runs), table, epochs, statistics.by_depth(table), advice)


def headline(facts: Facts) -> str:
    """The answer in a sentence, or why there is none."""
    if facts.advice:
        return facts.advice.sentence
    if not _comparable(facts.runs):
        return "These runs were made on different images: they are shown side by side and not ranked."
    best = statistics.best_configuration(facts.trials)
    if best is None:
        return "Nothing has finished: no trial has completed an epoch, so there is nothing to compare."
    return (
        f"No trial has finished, so there is no recommendation. The furthest is {wording.trial_name(best)}: validation "
        f"accuracy {wording.percent(best['val_accuracy'])} after {best['epochs_completed']} of "
        f"{wording.count(int(best['epochs_planned']), 'epoch')}."
    )


def reservations(facts: Facts) -> Iterator[str]:
    """What limits the answer, a sentence each."""
    words = {"planned": "not started", "running": "running when last heard of", "interrupted": "interrupted"}
    left = [f"{number} {word}" for state, word in words.items() if (number := facts.count(state))]
    if left:
        yield f"This run is incomplete: of {wording.count(len(facts.trials), 'trial')}, {', '.join(left)}."
    if failed := facts.count("failed"):
        yield f"{wording.count(failed, 'trial')} failed; the errors are at the end of this page."
    finished = set(zip(facts.depths["series"], facts.depths["depth_label"], strict=True))
    places = statistics.records(facts.trials.drop_duplicates(["series", "depth_label"]))
    bare = [place for place in places if (place["series"], place["depth_label"]) not in finished]
    if bare and finished:
        names = "; ".join(f"{place['series']} at {wording.depth_name(place['depth_label'])}" for place in bare)
        yield f"Missing from the comparison, for want of a finished trial: {names}."
    if facts.advice:
        yield from facts.advice.notes


def key_numbers(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """The tiles at the top: a number, what it is, a remark."""
    if facts.advice:
        best = facts.advice.best
        where = f"{best['series']}, {wording.depth_name(best['depth_label'])}"
        yield wording.plus_minus(best["val_accuracy"], best["standard_error"]), "best validation accuracy", where
    if len(facts.finals) == 1:
        result = facts.finals[0][1]
        error = statistics.binomial_error(result.test_accuracy, result.test_images)
        where = f"{result.backbone}, {wording.depth_name(result.depth_label)}"
        yield wording.plus_minus(result.test_accuracy, error), "test accuracy of the final fit", where
    rest = {"stopped early": facts.count("stopped"), "failed": facts.count("failed")}
    rest["not finished"] = facts.count("planned", "running", "interrupted")
    remark = ", ".join(f"{number} {word}" for word, number in rest.items() if number)
    yield f"{facts.count('finished')} of {len(facts.trials)}", "trials finished", remark
    spans = [[row["time"] for row in run.trials if "time" in row] or [0.0] for run in facts.runs]
    wall = wording.duration(sum(max(times) - min(times) for times in spans))
    training = wording.duration(facts.trials["seconds"].sum())
    yield training, "training, summed over trials", f"{wall} from the first trial's start to the last one's end"
    images = facts.trials["val_images"].max()
    test = f"{facts.finals[0][1].test_images:,} test images" if len(facts.finals) == 1 else ""
    if not pd.isna(images):
        yield f"{images:,.0f}", "validation images", test


def summary(facts: Facts, shown: Sequence[Section]) -> str:
    """The answer, the tables of depths and tests, and links to the figures, as Markdown."""
    lines = [f"# {_markdown(_title(facts))}", "", _markdown(headline(facts)), ""]
    lines += [f"- {_markdown(text)}" for text in reservations(facts)]
    for section in (section for section in shown if section.title in ("Depths", "Test")):
        head = list(section.table[0])
        cells = [head, ["---"] * len(head), *([_markdown(cell) for cell in row.values()] for row in section.table)]
        lines += ["", f"## {section.title}", "", *(f"| {' | '.join(row)} |" for row in cells)]
    lines += ["", *(f"![{section.title}]({section.file})" for section in shown if section.figure)]
    return "\n".join(lines) + "\n"


def _write(facts: Facts, out: Path) -> Path:
    """Write page, figures, summary and table; returns index.html."""
    out.mkdir(parents=True, exist_ok=True)
    shown = [section for make in SECTIONS if (section := make(facts)) is not None]
    images = {section.file: png(section.figure) for section in shown if section.figure}
    for name, image in images.items():
        (out / name).write_bytes(image)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raysweep.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title=_title(facts),
        headline=headline(facts),
        reservations=list(reservations(facts)),
        numbers=list(key_numbers(facts)),
        sections=shown,
        images={name: base64.b64encode(image).decode() for name, image in images.items()},
    )
    write_text(out / "results.csv", facts.trials.to_csv(index=False))
    write_text(out / "summary.md", summary(facts, shown))
    write_text(out / "index.html", page)
    return out / "index.html"


def _title(facts: Facts) -> str:
    return " and ".join(name_of(run) for run in facts.runs)


def _comparable(runs: Sequence[Run]) -> bool:
    data = [(run.about.get("recipe") or {}).get("data") or {} for run in runs]
    return len({json.dumps([each.get(name) for name in COMPARABLE]) for each in data}) <= 1


def _markdown(text: str) -> str:
    for special in "\\|<*[_`":
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())
