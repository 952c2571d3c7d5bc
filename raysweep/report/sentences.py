"""The answer in words: what to train, how sure that is, and what to run to be surer.

No sentence says more than the verdict holds (see `raysweep.report.statistics`).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..recipe import Objective
from . import wording
from .answer import Answer
from .groups import Group, records
from .objectives import METRICS
from .statistics import MOST_TIMES_IMAGES, Plan

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
        yield "Predictions of single images are missing: scores are compared unpaired, which tells less."
        if answer.asked != objective:
            yield f"Without them accuracy is compared, not {_name(answer.asked)}."
    elif not answer.verdict.paired:
        yield "Measured on different images, so not paired."
    if pick["n_seeds"] == 1:
        yield _one_seed(answer)
    images = _val_images(answer)
    if images is not None and images * answer.question.tolerance < 100 and objective != "loss":
        yield f"The tolerance of {tolerance(answer)} is less than one image of {images:,}."
    if objective == "macro_f1":
        yield "Macro-F1 is compared by its jackknife pseudo-values; their mean differs a little from macro-F1 itself."
    yield from _ends_of_the_grid(answer, tried)


def next_run(answer: Answer, about: Mapping[str, Any]) -> str:
    """What to run next to decide, with the command where there is one; empty where nothing is left to decide."""
    if answer.verdict.is_decided or len(answer.configurations) == 1:
        return ""
    if _val_images(answer) is None:
        return f"No row says how many validation images there were, so no run is advised; {_with_tolerance(answer)}."
    plan = _offered(answer.verdict.plans, answer)
    if plan is None:
        return f"No affordable run decides this; {_with_tolerance(answer)}."
    command = _command(plan, answer, about)
    if command:
        return f"{_plan_in_words(plan, answer)} Next: {command}"
    return f"{_plan_in_words(plan, answer)} Or {_with_tolerance(answer)}."


# ---- parts of sentences ----


def _train(answer: Answer) -> str:
    pick = answer.recommended
    return f"{wording.instruction(pick)} at lr {wording.rate(pick['lr'])}"


def _enough(answer: Answer) -> str:
    verdict = answer.verdict
    most = verdict.upper[verdict.recommended]
    sure = f"({100 * answer.question.confidence:g} % confidence)"
    behind = f"at most {_behind(most, answer, math.ceil)} the best configuration tried"
    text = f"{_train(answer)}: {behind if most > 0 else 'no configuration tried is better'} {sure}"
    cheaper = records(answer.depths)[: verdict.recommended]
    shallow = [row for row in cheaper if row["status"] == "too shallow"]
    unsure = [row for row in cheaper if row["status"] == "open"]
    if shallow and not unsure:
        every = "everything cheaper" if answer.several_series else "every shallower depth"
        text += f"; {every} loses more than {tolerance(answer)}"
    elif shallow:
        text += f"; {_names(shallow, answer)} {'loses' if len(shallow) == 1 else 'lose'} more than {tolerance(answer)}"
    parts = [text, *(_open(row, answer) for row in unsure[-2:])]
    if rest := unsure[:-2]:
        parts.append(f"{wording.capital(_names(rest, answer))} {'is' if len(rest) == 1 else 'are'} open too")
    return ". ".join(parts) + "."


def _open(row: Group, answer: Answer) -> str:
    behind = _behind(max(answer.verdict.scores) - row["score"], answer)
    low, high = _size(row["lower"], answer, math.floor), _size(row["upper"], answer, math.ceil)
    return f"Whether {_depth(row, answer)} would do is open: measured {behind} the best ({low} to {high})"


def _undecided(answer: Answer) -> str:
    rows, verdict = records(answer.depths), answer.verdict
    unsure = [row for row in rows if row["status"] == "open"]
    pick = answer.recommended
    seen = f"{_images(answer)} and {wording.count(int(pick['n_seeds']), 'seed')} can show"
    shown = f"{_size(min(verdict.upper), answer, math.ceil)}{_unit(answer)}, not {_given(answer):g}"
    most = _size(pick["upper"], answer, math.ceil)
    standing = f"measured best, though another can be better by up to {most}{_unit(answer)}"
    if verdict.best != verdict.recommended:
        behind = _behind(max(verdict.scores) - pick["score"], answer)
        standing = f"measured {behind} the best, at most {_behind(pick['upper'], answer, math.ceil)} it"
    if len(rows) == 1:
        start = f"Undecided between the {len(answer.configurations)} learning rates of the one depth"
    elif len(unsure) == 1:
        start = f"Undecided whether {_names(unsure, answer)} is enough"
    else:
        start = f"Undecided between {_names(unsure, answer)}"
    return f"{start}: {seen} {shown}. Until then: {_lower(_train(answer))}, {standing}."


def _expect(answer: Answer) -> str:
    """What the recommended configuration will score, corrected for the luck of the winner."""
    verdict, pick = answer.verdict, answer.recommended
    basis = f"{wording.count(int(pick['n_seeds']), 'seed')}, {_images(answer)}"
    luck, tried = _size(verdict.optimism, answer), len(answer.configurations)
    if float(luck) > 0:
        share = f"too low by {luck}," if answer.question.objective == "loss" else f"{luck} of it"
        basis += f"; measured {_level(pick['score'], answer)}, {share} the luck of picking the best of {tried}"
    return f"Expect {_name_of_level(answer)}{expected(answer)} ({basis})."


def expected(answer: Answer) -> str:
    """The recommended configuration's score without the luck of the winner, with its error."""
    verdict = answer.verdict
    score = answer.recommended["score"] - verdict.optimism
    level = _level(score if answer.question.objective == "loss" else max(0.0, score), answer, unit=True)
    return f"{level} ± {_size(verdict.error, answer)}"


def measured(answer: Answer) -> str:
    """Its score as it was measured."""
    return _level(answer.recommended["score"], answer, unit=True)


def errors_apart(answer: Answer) -> str:
    """Where the ± comes from: the images and the seeds."""
    images, seeds = _parts_of_error(answer)
    return (
        f"Two things make up the ± {_size(answer.verdict.error, answer)} of the recommended depth, added as squares: "
        f"which images are in validation ({images}; more images make it smaller) and the luck of the seed ({seeds}; "
        "more seeds do)."
    )


def errors_in_short(answer: Answer) -> str:
    """The same in few words."""
    images, seeds = _parts_of_error(answer)
    return f"± {images} by the images, {seeds} by the seeds"


def _parts_of_error(answer: Answer) -> tuple[str, str]:
    row = answer.verdict.recommended
    return _size(answer.verdict.image_errors[row], answer), _size(answer.verdict.seed_errors[row], answer)


def _with_tolerance(answer: Answer) -> str:
    """The least tolerance, to a tenth of a point, with which there would be an answer, and which."""
    upper = list(answer.verdict.upper)
    least = math.ceil(round(1000 * min(upper), 6)) / 10
    row = next(place for place, value in enumerate(upper) if 100 * value <= least + 1e-6)
    name = _depth(records(answer.depths)[row], answer)
    unit = "(hundredths of loss)" if answer.question.objective == "loss" else "points"
    return f"with a tolerance of {least:.1f} {unit} the answer is {name}"


def _offered(plans: Sequence[Plan], answer: Answer) -> Plan | None:
    """The plan that asks for least beyond what there is: more seeds on the same images, else the fewest images.

    None if all ask for too many images.
    """
    have = _val_images(answer) or 0
    within = [plan for plan in plans if plan.images <= have]
    affordable = [plan for plan in plans if plan.images <= MOST_TIMES_IMAGES * have]
    if within:
        return min(within, key=lambda plan: plan.seeds)
    return min(affordable, key=lambda plan: plan.images, default=None)


def _plan_in_words(plan: Plan, answer: Answer) -> str:
    have = _val_images(answer) or 0
    seeds = wording.count(plan.seeds, "seed")
    if plan.images <= have:
        return f"To decide: {seeds} on the same {have:,} validation images."
    return f"To decide: about {_rounded(plan.images):,} validation images with {seeds}."


def _command(plan: Plan, answer: Answer, about: Mapping[str, Any]) -> str:
    """The next sweep as a command to copy; empty where no change of the recipe gives so many images."""
    words = shlex.split(about.get("command") or "")
    data = (about.get("recipe") or {}).get("data") or {}
    have = _val_images(answer) or 0
    if words[:3] != ["python", "-m", "raysweep.grid"]:
        return ""
    change = [f"grid.seed={list(range(plan.seeds))}".replace(" ", "")]
    if plan.images > have:
        share = data.get("val_fraction", 0.2) * plan.images / have
        if share > LARGEST_SHARE or "val" not in (about.get("images") or {}).get("drawn", ["val"]):
            return ""
        change.append(f"data.val_fraction={math.ceil(100 * share) / 100:g}")
    kept = [
        word for word in _without_run_dir(words) if word.partition("=")[0] not in ("grid.seed", "data.val_fraction")
    ]
    return shlex.join([*kept, *change])


def _one_seed(answer: Answer) -> str:
    """What the error of a recommendation that was trained once rests on."""
    pick, depths = answer.recommended, answer.depths
    moves = f"{_size(answer.verdict.seed_errors[answer.verdict.recommended], answer)}{_unit(answer)}"
    name = _name(answer.question.objective)
    if (depths.loc[depths["backbone"] == pick["backbone"], "n_seeds"] > 1).any():
        return f"One seed at this depth: by the other depths a seed moves {name} by {moves}; run a second."
    return f"One seed: ± assumes that a seed moves {name} by {moves}; run a second."


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
        yield "The recommended depth is the deepest tried: a deeper one may be better."
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
    return _listed([f"{name} {_depths(found)}" for name, found in labels.items()])


def _depths(labels: Sequence[str]) -> str:
    """at depth 9; at depths 3, 9 and 21; at depth 9 and with all layers."""
    numbered = [label for label in labels if label not in wording.WHOLE]
    named = [f"with {wording.depth_name(label)}" for label in labels if label not in numbered]
    together = [f"at depths {_listed(numbered)}"] if len(numbered) > 1 else [f"at depth {label}" for label in numbered]
    return _listed([*together, *named])


def _listed(names: Sequence[str]) -> str:
    """a, b and c; of many names the first and how many more there are."""
    shown = list(names[:MOST_NAMED])
    if more := len(names) - len(shown):
        shown.append(f"{more} more")
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _depth(row: Group, answer: Answer) -> str:
    return wording.place(row) if answer.several_series else wording.depth_name(row["depth_label"])


def _images(answer: Answer) -> str:
    images = _val_images(answer)
    return "validation images of unknown number" if images is None else f"{images:,} validation images"


def _val_images(answer: Answer) -> int | None:
    """How many validation images there were; None where no row says it."""
    images: Any = answer.recommended.get("val_images")
    return None if wording.missing(images) else int(images)


def _name(objective: Objective) -> str:
    return METRICS[objective].name


def _name_of_level(answer: Answer) -> str:
    return "" if answer.question.objective == "accuracy" else f"a {_name(answer.question.objective)} of "


def _level(score: float, answer: Answer, unit: bool = False) -> str:
    """A score as a reader knows it: percent, or the loss itself."""
    if answer.question.objective == "loss":
        return f"{-score:.3f}"
    return f"{100 * score:.1f}{' %' if unit else ''}"


def _size(fraction: float, answer: Answer, rounded: Callable[[float], float] = round) -> str:
    """A difference or an error: of a loss as it is, to three decimals, else in points to one.

    Of a bound the rounding is away from what it excludes: `math.ceil` of an upper one, `math.floor` of a lower.
    """
    thousandths = rounded(round(1000 * fraction, 6))
    return f"{thousandths / 1000:.3f}" if answer.question.objective == "loss" else f"{thousandths / 10:.1f}"


def _unit(answer: Answer) -> str:
    return "" if answer.question.objective == "loss" else " points"


def _behind(fraction: float, answer: Answer, rounded: Callable[[float], float] = round) -> str:
    """0.3 points below; of a loss 0.003 above."""
    return f"{_size(fraction, answer, rounded)}{_unit(answer)} {'below' if _unit(answer) else 'above'}"


def _given(answer: Answer) -> float:
    """The tolerance as a number: in points, of a loss as it is."""
    return answer.question.tolerance / (100 if answer.question.objective == "loss" else 1)


def tolerance(answer: Answer) -> str:
    """0.5 points, 1 point; of a loss 0.005."""
    text = f"{_given(answer):g}{_unit(answer)}"
    return text.removesuffix("s") if text == "1 points" else text


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _rounded(number: int) -> int:
    """To two digits."""
    size = 10 ** max(0, len(str(number)) - 2)
    return math.ceil(number / size) * size
