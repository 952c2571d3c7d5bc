"""The page: sections, figures, summary and tables of one run folder or several.

Writes index.html, which fetches nothing (figures embedded, style and script inline), the
figures as PNG files, summary.md and results.csv. Several folders make one comparison.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jinja2
import pandas as pd

from ..files import write_bytes, write_text
from ..sweep.ledger import Run, read
from ..sweep.reading import nameless
from . import groups, sentences, tables, wording
from .answer import answer_of, names_of, question_of
from .facts import Facts, Section
from .figures.style import png
from .objectives import METRICS
from .sections import comparison, final, trials
from .sections.audit import audit
from .sections.classes import recall
from .sections.features import features
from .sections.predictions import classes, samples

SECTIONS: tuple[Callable[[Facts], Section | None], ...] = (
    comparison.differences,
    comparison.score,
    comparison.overfitting,
    comparison.cost,
    comparison.depths,
    recall,
    final.test,
    audit,
    samples,
    final.confusion,
    classes,
    final.calibration,
    comparison.curves,
    comparison.losses,
    comparison.rates,
    features,
    trials.trials,
    trials.failures,
    trials.provenance,
)
"""The page from top to bottom."""
MOST_UNREAD = 12
"""Files and lines that could not be read and are named."""
SAME_DATA = ("dataset", "root")
"""Runs equal in these fields of `data` can be ranked."""

MOST_FAILURES = 5
"""Failed trials that are named on the terminal."""


def build(folder: Path, tolerance: float | None = None, confidence: float | None = None) -> Path:
    """Write the report on one run folder; returns its index.html.

    Args:
        folder: of the run.
        tolerance: percentage points, instead of the recipe's.
        confidence: instead of the recipe's.

    Raises:
        RunFolderError: the folder holds no run.
    """
    return write(gather([read(folder)], tolerance, confidence))


def answer(folders: Sequence[Path], tolerance: float | None = None, confidence: float | None = None) -> str:
    """The report's answer: what to train, and what to run next if that is not decided."""
    return in_short(gather([read(folder) for folder in folders], tolerance, confidence))


def in_short(facts: Facts) -> str:
    """The answer, and what to run next if that is not decided."""
    return " ".join(filter(None, (headline(facts), next_step(facts))))


def failures(facts: Facts) -> list[str]:
    """Which trials failed and why, a sentence each, the number of all first; nothing where none did."""
    failed = groups.records(facts.trials[facts.trials["state"] == "failed"])
    if not failed:
        return []
    several = f"{len(failed)} of {wording.count(len(facts.trials), 'trial')} failed, so the comparison is incomplete"
    named = [f"{wording.trial_name(row)}: {row.get('error') or 'no reason was recorded'}" for row in failed]
    more = [f"and {len(named) - MOST_FAILURES} more; see the report"] if len(named) > MOST_FAILURES else []
    return [several, *named[:MOST_FAILURES], *more]


def compare(
    folders: Sequence[Path], out: Path | None = None, tolerance: float | None = None, confidence: float | None = None
) -> Path:
    """Write one report on several runs, by default into the first one's report/compare/; returns its index.html."""
    return write(gather([read(folder) for folder in folders], tolerance, confidence), out, together=True)


def write(facts: Facts, out: Path | None = None, together: bool = False, refresh_s: int | None = None) -> Path:
    """Write the report; returns its index.html.

    Args:
        facts: what it is on.
        out: where to, instead of report/ in the run folder; of several, report/compare/ in the first one's.
        together: whether it compares runs, so that none of them has results.csv in its own place.
        refresh_s: seconds after which an open page loads itself again; never when None.
    """
    folder = facts.runs[0].folder
    if out is None and not (together or len(facts.runs) > 1):
        return _write(facts, folder / "report", folder / "results.csv", refresh_s)
    out = out or folder / "report" / "compare"
    return _write(facts, out, out / "results.csv", refresh_s)


def gather(runs: Sequence[Run], tolerance: float | None = None, confidence: float | None = None) -> Facts:
    """The tables over one run or several, in which `run` tells them apart."""
    runs = [_sound(run) for run in runs]
    named = list(zip(names_of(runs), runs, strict=True))
    table = groups.with_series(_joined([tables.trials_table(run).assign(run=name) for name, run in named]))
    epochs = _joined([tables.epochs_table(run).assign(run=name) for name, run in named])
    found = answer_of(table, runs, question_of(runs[0], tolerance, confidence))
    unread = [said for run in runs for said in run.unread] + list(found.unread if found else ())
    return Facts(tuple(runs), table, epochs, found, _same_data(runs), unread)


def _sound(run: Run) -> Run:
    """The run without trials of which no row says what they are; one whose last epochs are lost has not finished."""
    lost = nameless((*run.trials, *run.epochs))
    said = [f"trial {trial} is left out: no line says its {', '.join(keys)}" for trial, keys in lost.items()]
    epochs, trials = ([row for row in rows if row["trial"] not in lost] for rows in (run.epochs, run.trials))
    if bare := {row["trial"] for row in epochs} - {row["trial"] for row in trials}:
        said.append(f"trials.jsonl has no line of {wording.count(len(bare), 'trial')} of epochs.jsonl")
    last: dict[str, int] = {}
    for row in epochs:
        last[row["trial"]] = max(row["epoch"], last.get(row["trial"], 0))
    noted = {row["trial"]: row["epochs_completed"] for row in trials if row.get("epochs_completed")}
    for trial, count in noted.items():
        if last.get(trial, 0) < count:
            there = f"{last.get(trial, 0)} of its {count} epochs"
            said.append(f"epochs.jsonl has {there} of trial {trial}, which is therefore not compared")
            trials.append({"trial": trial, "state": "interrupted"})
    return replace(run, epochs=epochs, trials=trials, unread=(*run.unread, *said)) if said else run


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)


def headline(facts: Facts) -> str:
    """The answer in a few sentences, or why there is none."""
    if facts.answer:
        return sentences.headline(facts.answer)
    if not facts.same_data:
        return "These runs were made on different data: they are shown side by side and not ranked."
    best = groups.furthest(facts.trials)
    if best is None:
        return "Nothing has finished: no trial has completed an epoch, so there is nothing to compare."
    return (
        f"No trial has finished, so there is no recommendation. The furthest is {wording.trial_name(best)}: validation "
        f"accuracy {wording.percent(best['val_accuracy'])} after {best['epochs_completed']} of "
        f"{wording.count(int(best['epochs_planned']), 'epoch')}."
    )


def next_step(facts: Facts) -> str:
    """What to run next to decide what is open; empty where nothing is."""
    about = facts.runs[0].about if len(facts.runs) == 1 else {}
    return sentences.next_run(facts.answer, about) if facts.answer else ""


def reservations(facts: Facts) -> Iterator[str]:
    """What limits the answer, a sentence each."""
    yield from unread(facts)
    words = {"planned": "not started", "running": "running when last heard of", "interrupted": "interrupted"}
    left = [f"{number} {word}" for state, word in words.items() if (number := facts.count(state))]
    if left:
        yield f"This run is incomplete: of {wording.count(len(facts.trials), 'trial')}, {', '.join(left)}."
    if failed := facts.count("failed"):
        yield f"{wording.count(failed, 'trial')} failed; the errors are at the end of this page."
    finished = set(zip(facts.depths["series"], facts.depths["depth_label"], strict=True))
    places = groups.records(facts.trials.drop_duplicates(["series", "depth_label"]))
    bare = [place for place in places if (place["series"], place["depth_label"]) not in finished]
    if bare and finished:
        names = "; ".join(map(wording.place, bare))
        yield f"Missing from the comparison, for want of a finished trial: {names}."
    if facts.answer:
        yield from sentences.notes(facts.answer, groups.records(facts.trials[["series", "depth_label", "lr"]]))


def unread(facts: Facts) -> list[str]:
    """What could not be read and is therefore not in the report, a sentence each; of many the first."""
    more = len(facts.unread) - MOST_UNREAD
    return [*facts.unread[:MOST_UNREAD], *[f"{more} more such files and lines"] * (more > 0)]


def key_numbers(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """The tiles at the top: a number, what it is, a remark."""
    if facts.answer:
        pick, verdict = facts.answer.recommended, facts.answer.verdict
        where = f"{pick['series']}, {wording.depth_name(pick['depth_label'])}"
        what = f"expected validation {METRICS[facts.answer.question.objective].name}"
        remark = f"{where}; measured {sentences.measured(facts.answer)}; {sentences.errors_in_short(facts.answer)}"
        yield sentences.expected(facts.answer), what, remark
        if len(facts.answer.configurations) > 1:
            status = "decided" if verdict.is_decided else "undecided"
            yield status, f"with a tolerance of {sentences.tolerance(facts.answer)}", ""
    if len(facts.finals) == 1:
        _, _, result = facts.finals[0]
        error = groups.binomial_error(result.test_accuracy, result.test_images)
        where = f"{result.backbone}, {wording.depth_name(result.depth_label)}"
        yield wording.plus_minus(result.test_accuracy, error), "test accuracy of the final fit", where
    rest = {"stopped early": facts.count("stopped", "dropped"), "failed": facts.count("failed")}
    rest["not finished"] = facts.count("planned", "running", "interrupted")
    remark = ", ".join(f"{number} {word}" for word, number in rest.items() if number)
    yield f"{facts.count('finished')} of {len(facts.trials)}", "trials finished", remark
    spans = [[row["time"] for row in run.trials if "time" in row] or [0.0] for run in facts.runs]
    wall = wording.duration(sum(max(times) - min(times) for times in spans))
    training = wording.duration(facts.trials["seconds"].sum())
    yield training, "training, summed over trials", f"{wall} from the first trial's start to the last one's end"
    images = facts.trials["val_images"].max()
    test = f"{facts.finals[0][2].test_images:,} test images" if len(facts.finals) == 1 else ""
    if not pd.isna(images):
        yield f"{images:,.0f}", "validation images", test


def summary(facts: Facts, shown: Sequence[Section]) -> str:
    """The answer, the tables of depths and tests, and links to the figures, as Markdown."""
    lines = [f"# {_markdown(_title(facts))}", "", _markdown(headline(facts)), ""]
    lines += [_markdown(next_step(facts)), ""] if next_step(facts) else []
    lines += [f"- {_markdown(text)}" for text in reservations(facts)]
    for section in (section for section in shown if section.title in ("Depths", "Test")):
        head = list(section.table[0])
        cells = [head, ["---"] * len(head), *([_markdown(cell) for cell in row.values()] for row in section.table)]
        lines += ["", f"## {section.title}", "", *(f"| {' | '.join(row)} |" for row in cells)]
    lines += ["", *(f"![{section.title}](figures/{section.file})" for section in shown if section.figure)]
    return "\n".join(lines) + "\n"


def _write(facts: Facts, out: Path, table: Path, refresh_s: int | None) -> Path:
    """Write page, figures, summary and table; returns index.html."""
    out.mkdir(parents=True, exist_ok=True)
    shown, images = _drawn(facts)
    for name, image in images.items():
        write_bytes(out / "figures" / name, image)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raysweep.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title=_title(facts),
        refresh_s=refresh_s,
        headline=headline(facts),
        next_step=next_step(facts),
        reservations=list(reservations(facts)),
        numbers=list(key_numbers(facts)),
        sections=shown,
        images={name: base64.b64encode(image).decode() for name, image in images.items()},
    )
    write_text(table, facts.trials.to_csv(index=False))
    write_text(out / "summary.md", summary(facts, shown))
    write_text(out / "index.html", page)
    return out / "index.html"


def _drawn(facts: Facts) -> tuple[list[Section], dict[str, bytes]]:
    """The sections, and the files of their figures by name; a figure that is a file is emptied, as it may be large."""
    shown, images = [], {}
    for section in filter(None, (make(facts) for make in SECTIONS)):
        shown.append(section)
        if section.figure:
            images[section.file] = png(section.figure)
            section.figure.clear()
    return shown, images


def _title(facts: Facts) -> str:
    return " and ".join(facts.names)


def _same_data(runs: Sequence[Run]) -> bool:
    data = [(run.about.get("recipe") or {}).get("data") or {} for run in runs]
    return len({json.dumps([each.get(name) for name in SAME_DATA]) for each in data}) <= 1


def _markdown(text: str) -> str:
    for special in "\\|<*[_`":
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())
