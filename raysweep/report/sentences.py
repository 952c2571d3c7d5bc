"""The answer in words: what to train, how sure that is, and what to run to be surer.

No sentence says more than the verdict holds (see `raysweep.report.statistics`).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import wording
from .answer import Answer
from .groups import Group, records
from .statistics import V0, Plan

MOST_NAMED = 6
"""Depths that a sentence lists one by one."""
LARGEST_SHARE = 0.5
"""Of the images that are not test: the most that an advised run holds out for validation."""


def headline(answer: Answer) -> str:
    """The answer in a few sentences."""
    if len(answer.configurations) == 1:
        return f"{_train(answer)}: the only configuration with a finished trial. {_expect(answer)}"
    parts = [_enough(answer) if answer.verdict.is_decided else _undecided(answer), _expect(answer)]
    return " ".join(parts)


def notes(answer: Answer, tried: Sequence[Group]) -> Iterator[str]:
    """What to bear in mind before acting on the answer, a sentence each.

    Args:
        answer: the answer.
        tried: all trials, as rows with `series`, `depth_label` and `lr`.
    """
    pick, objective = answer.recommended, answer.question.objective
    if not answer.from_predictions:
        yield "The trials left no predictions of single images: scores are compared unpaired, which tells less."
    elif not answer.verdict.paired:
        yield "Measured on different images, so not paired."
    if pick["n_seeds"] == 1:
        moves = _points(math.sqrt(V0 * _unit_variance(answer)))
        yield f"One seed: ± assumes that a seed moves {_name(objective)} by {moves} points; run a second."
    images = 0 if wording.missing(pick.get("val_images")) else int(pick["val_images"])
    if images * answer.question.tolerance < 100 and objective != "loss":
        yield f"The tolerance of {answer.question.tolerance:g} points is less than one of {images:,} images."
    if objective == "macro_f1":
        yield "Macro-F1 is compared by the jackknife, the mean of whose pseudo-values differs a little from F1 itself."
    yield from _ends_of_the_grid(answer, tried)


def next_run(answer: Answer, about: Mapping[str, Any]) -> str:
    """What to run next to decide, with the command where there is one; empty where nothing is left to decide."""
    if answer.verdict.is_decided or len(answer.configurations) == 1:
        return ""
    if not answer.verdict.plans:
        return f"No affordable run decides this; {_with_tolerance(answer)}."
    plan = _offered(answer.verdict.plans, answer)
    command = _command(plan, answer, about)
    if command:
        return f"{_plan_in_words(plan, answer)} Next: {command}"
    return f"{_plan_in_words(plan, answer)} Or {_with_tolerance(answer)}."


# ---- parts of sentences ----


def _train(answer: Answer) -> str:
    pick = answer.recommended
    return f"{wording.instruction(pick)} at lr {wording.rate(pick['lr'])}"


def _enough(answer: Answer) -> str:
    verdict, tolerance = answer.verdict, answer.question.tolerance
    most = _points(verdict.upper[verdict.recommended])
    sure = f"({100 * answer.question.confidence:g} % confidence)"
    text = f"{_train(answer)}: at most {most} points below the best configuration tried {sure}"
    cheaper = records(answer.depths)[: verdict.recommended]
    shallow = [row for row in cheaper if row["status"] == "too shallow"]
    unsure = [row for row in cheaper if row["status"] == "open"]
    word = "cheaper" if answer.several_series else "shallower"
    if shallow and not unsure:
        text += f"; every {word} {_thing(answer)} loses more than {tolerance:g}"
    elif shallow:
        text += f"; {_names(shallow, answer)} {'loses' if len(shallow) == 1 else 'lose'} more than {tolerance:g}"
    return ". ".join([text, *(_open(row, answer) for row in unsure[-2:])]) + "."


def _open(row: Group, answer: Answer) -> str:
    best = max(answer.verdict.scores)
    behind, low, high = (_points(x) for x in (best - row["score"], row["lower"], row["upper"]))
    return f"Whether {_depth(row, answer)} would do is open: measured {behind} lower ({low} to {high})"


def _undecided(answer: Answer) -> str:
    rows, verdict = records(answer.depths), answer.verdict
    unsure = [row for row in rows if row["status"] == "open"]
    pick = answer.recommended
    seen = f"{_images(answer)} and {wording.count(int(pick['n_seeds']), 'seed')} can show"
    shown = f"{_points(min(verdict.upper))} points, not {answer.question.tolerance:g}"
    behind, most = _points(max(verdict.scores) - pick["score"]), _points(pick["upper"])
    standing = "measured best" if behind == "0.0" else f"measured {behind} below the best"
    if len(rows) == 1:
        start = f"The depth is one; between its {len(answer.configurations)} learning rates it is undecided"
    elif len(unsure) == 1:
        start = f"Undecided whether {_names(unsure, answer)} is enough"
    else:
        start = f"Undecided between {_names(unsure, answer)}"
    return f"{start}: {seen} {shown}. Until then: {_lower(_train(answer))}, {standing}, at most {most} points below."


def _expect(answer: Answer) -> str:
    """What the recommended configuration will score, corrected for the luck of the winner."""
    verdict, pick = answer.verdict, answer.recommended
    basis = f"{wording.count(int(pick['n_seeds']), 'seed')}, {_images(answer)}"
    luck, tried = _points(verdict.optimism), len(answer.configurations)
    if luck != "0.0":
        basis += f"; measured {_level(pick['score'], answer)}, {luck} of it the luck of picking the best of {tried}"
    return f"Expect {_name_of_level(answer)}{expected(answer)} ({basis})."


def expected(answer: Answer) -> str:
    """The recommended configuration's score without the luck of the winner, with its error."""
    verdict = answer.verdict
    level = _level(answer.recommended["score"] - verdict.optimism, answer, unit=True)
    return f"{level} ± {_error(verdict.error, answer)}"


def measured(answer: Answer) -> str:
    """Its score as it was measured."""
    return _level(answer.recommended["score"], answer, unit=True)


def errors_apart(answer: Answer) -> str:
    """Where the ± comes from: the images and the seeds."""
    row = answer.verdict.recommended
    images, seeds = answer.verdict.image_errors[row], answer.verdict.seed_errors[row]
    return (
        f"Of the ± {_points(answer.verdict.error)}, {_points(images)} come from which images are in validation (more "
        f"images make that smaller) and {_points(seeds)} from the luck of the seed (more seeds do)."
    )


def _with_tolerance(answer: Answer) -> str:
    """The least tolerance, to a tenth of a point, with which there would be an answer, and which."""
    upper = list(answer.verdict.upper)
    tolerance = math.ceil(1000 * min(upper)) / 10
    row = next(place for place, value in enumerate(upper) if 100 * value <= tolerance)
    name = _depth(records(answer.depths)[row], answer)
    return f"with a tolerance of {tolerance:.1f} points the answer is {name}"


def _offered(plans: Sequence[Plan], answer: Answer) -> Plan:
    """The plan that asks for least beyond what there is: more seeds on the same images, else the fewest images."""
    have = int(answer.recommended["val_images"])
    within = [plan for plan in plans if plan.images <= have]
    return min(within, key=lambda plan: plan.seeds) if within else min(plans, key=lambda plan: plan.images)


def _plan_in_words(plan: Plan, answer: Answer) -> str:
    have = int(answer.recommended["val_images"])
    seeds = wording.count(plan.seeds, "seed")
    if plan.images <= have:
        return f"To decide: {seeds} on the same {have:,} validation images."
    return f"To decide: about {_rounded(plan.images):,} validation images with {seeds}."


def _command(plan: Plan, answer: Answer, about: Mapping[str, Any]) -> str:
    """The next sweep as a command to copy; empty where no change of the recipe gives so many images."""
    words = shlex.split(about.get("command") or "")
    data = (about.get("recipe") or {}).get("data") or {}
    have = int(answer.recommended["val_images"])
    if words[:3] != ["python", "-m", "raysweep.grid"]:
        return ""
    change = [f"grid.seed={list(range(plan.seeds))}".replace(" ", "")]
    if plan.images > have:
        share = data.get("val_fraction", 0.2) * plan.images / have
        if share > LARGEST_SHARE:
            return ""
        change.append(f"data.val_fraction={math.ceil(100 * share) / 100:g}")
    kept = [
        word for word in _without_run_dir(words) if word.partition("=")[0] not in ("grid.seed", "data.val_fraction")
    ]
    return shlex.join([*kept, *change])


def _without_run_dir(words: Sequence[str]) -> Iterator[str]:
    """The words of a command but for the folder of its run."""
    rest = iter(words)
    for word in rest:
        if word == "--run-dir":
            next(rest, None)
        elif not word.startswith("--run-dir="):
            yield word


def _ends_of_the_grid(answer: Answer, tried: Sequence[Group]) -> Iterator[str]:
    """Where the best lies at an end of what was tried."""
    pick, depths = answer.recommended, answer.depths
    own = depths[depths["series"] == pick["series"]]
    deepest = pick["layers"] == own["layers"].max() and pick["trainable_parameters"] < pick["total_parameters"]
    if len(own) > 1 and deepest:
        yield "It is the deepest depth tried: a deeper one may be better."
    rates = {row["lr"] for row in tried if (row["series"], row["depth_label"]) == (pick["series"], pick["depth_label"])}
    for end, other, value in (("smallest", "smaller", min(rates)), ("largest", "larger", max(rates))):
        if len(rates) > 1 and pick["lr"] == value:
            yield (
                f"{wording.rate(value)} is the {end} learning rate tried at this depth: a {other} one may be better."
            )


# ---- names and numbers ----


def _names(rows: Sequence[Group], answer: Answer) -> str:
    """Depths one by one, those of one network together."""
    if not answer.several_series:
        return _listed([wording.depth_name(row["depth_label"]) for row in rows])
    labels: dict[str, list[str]] = {}
    for row in rows:
        labels.setdefault(row["series"], []).append(row["depth_label"])
    return _listed([f"{name} at {_depths(found)}" for name, found in labels.items()])


def _depths(labels: Sequence[str]) -> str:
    """depth 9; depths 3, 9 and 21; depth 9 and all layers."""
    numbered = [label for label in labels if label not in ("head", "all")]
    named = [wording.depth_name(label) for label in labels if label not in numbered]
    together = [f"depths {_listed(numbered)}"] if len(numbered) > 1 else [f"depth {label}" for label in numbered]
    return _listed([*together, *named])


def _listed(names: Sequence[str]) -> str:
    """a, b and c; of many names the first and how many more there are."""
    shown = list(names[:MOST_NAMED])
    if more := len(names) - len(shown):
        shown.append(f"{more} more")
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _depth(row: Group, answer: Answer) -> str:
    name = wording.depth_name(row["depth_label"])
    return f"{row['series']} at {name}" if answer.several_series else name


def _thing(answer: Answer) -> str:
    return "configuration" if answer.several_series else "depth"


def _images(answer: Answer) -> str:
    return f"{int(answer.recommended['val_images']):,} validation images"


def _name(objective: str) -> str:
    return objective.replace("_", " ").replace("macro f1", "macro-F1")


def _name_of_level(answer: Answer) -> str:
    return "" if answer.question.objective == "accuracy" else f"a {_name(answer.question.objective)} of "


def _level(score: float, answer: Answer, unit: bool = False) -> str:
    """A score as a reader knows it: percent, or the loss itself."""
    if answer.question.objective == "loss":
        return f"{-score:.3f}"
    return f"{100 * score:.1f}{' %' if unit else ''}"


def _error(fraction: float, answer: Answer) -> str:
    return f"{fraction:.3f}" if answer.question.objective == "loss" else _points(fraction)


def _points(fraction: float) -> str:
    """A difference in points, which are hundredths."""
    text = f"{100 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _rounded(number: int) -> int:
    """To two digits."""
    size = 10 ** max(0, len(str(number)) - 2)
    return math.ceil(number / size) * size


def _unit_variance(answer: Answer) -> float:
    score = float(np.clip(answer.recommended["score"], 0, 1))
    return max(score * (1 - score), 1e-4)
