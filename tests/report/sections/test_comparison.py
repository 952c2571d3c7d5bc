"""The sections that compare depths: when they are there, what their tables hold, what their texts promise."""

import pytest

from raysweep.report import page
from raysweep.report.sections import comparison
from tests.report.synthetic_runs import epoch_rows, finished, planned

RECIPE = {"data": {"dataset": "digits"}}


def facts_of(make_run, accuracies, seeds=(0, 1), **more):
    outcomes = [finished(planned(depth, seed=s), score) for depth, score in accuracies.items() for s in seeds]
    return page.gather([make_run(outcomes, **more)])


def of_depth(section):
    return {row["depth"]: row for row in section.table}


def test_differences_explain_what_enough_means(make_run):
    facts = facts_of(make_run, {1: 0.90, 3: 0.95}, recipe=RECIPE | {"confidence": 0.95})
    section = comparison.differences(facts)
    assert section.title == "Which depth is enough"
    assert "image by image on the same validation images" in section.text
    assert (
        "A depth is enough if, with 95 % confidence, no configuration tried is better by more than the tolerance (the "
        "grey band); too shallow if, with the same confidence, another depth is; else open."
    ) in section.text
    assert section.figure is not None


def test_differences_do_not_claim_a_pairing_that_there_is_not(make_run):
    facts = facts_of(make_run, {1: 0.90, 3: 0.95}, predictions=False)
    assert "image by image" not in comparison.differences(facts).text
    assert "not paired by image" in comparison.differences(facts).text


def test_the_table_of_depths(make_run):
    facts = facts_of(make_run, {1: 0.90, 3: 0.95})
    section = comparison.depths(facts)
    rows = of_depth(section)
    assert [row[""] for row in section.table] == ["", "●"]
    assert rows["1"]["verdict"] == "too shallow"
    assert rows["3"]["verdict"] == "enough"
    assert rows["3"]["validation accuracy (%)"] == "95.0"
    assert rows["3"]["± (points)"] == "0.6"
    assert (rows["3"]["behind by at most (points)"], rows["3"]["behind by at least (points)"]) == ("0.0", "0.0")
    assert 5.0 < float(rows["1"]["behind by at most (points)"]) < 7.0
    assert 3.0 < float(rows["1"]["behind by at least (points)"]) < 5.0
    assert rows["3"]["seeds"] == "2"
    assert rows["3"]["gap (points)"].startswith("2.0 ± ")


def test_bounds_are_rounded_away_from_what_they_exclude(make_run):
    facts = facts_of(make_run, {1: 0.90, 3: 0.94, 9: 0.943})
    cells = comparison.depths(facts).table
    for row, depth in zip(cells, facts.depths.to_dict("records"), strict=True):
        most, least = (float(row[f"behind by at {which} (points)"]) for which in ("most", "least"))
        assert 0 <= most - 100 * depth["upper"] < 0.1
        assert 0 <= 100 * depth["lower"] - least < 0.1


@pytest.mark.parametrize(
    ("objective", "column", "unit"),
    [
        ("balanced_accuracy", "validation balanced accuracy (%)", "points"),
        ("macro_f1", "validation macro-F1 (%)", "points"),
        ("loss", "validation loss", "hundredths"),
    ],
)
def test_the_error_stands_beside_the_objective_that_it_is_of(make_run, objective, column, unit):
    facts = facts_of(make_run, {1: 0.90, 3: 0.95}, recipe=RECIPE | {"objective": objective})
    names = list(comparison.depths(facts).table[0])
    assert names[names.index(column) + 1] == f"± ({unit})"
    assert f"behind by at most ({unit})" in names
    assert {"validation accuracy (%)", "validation loss"} <= set(names)
    assert len(names) == len(set(names))


def test_the_objective_names_its_section(make_run):
    facts = facts_of(make_run, {1: 0.90, 3: 0.95}, recipe=RECIPE | {"objective": "macro_f1"})
    assert comparison.score(facts).title == "Macro-F1 by depth"
    assert comparison.score(facts_of(make_run, {1: 0.9, 3: 0.95}, name="b")).file == "accuracy_by_depth.png"


def test_of_one_depth_there_is_no_figure_by_depth(make_run):
    facts = facts_of(make_run, {3: 0.95})
    assert comparison.differences(facts) is None
    assert comparison.score(facts) is None
    assert comparison.overfitting(facts) is None
    assert comparison.cost(facts) is None
    assert len(comparison.depths(facts).table) == 1


def test_without_a_finished_trial_only_curves(make_run):
    facts = page.gather([make_run([(planned(3), "interrupted", epoch_rows(planned(3), 0.9, 2))])])
    assert comparison.depths(facts) is None
    assert comparison.curves(facts).title == "Learning curves"
    assert comparison.losses(facts).title == "Loss curves"
    assert comparison.rates(facts) is None


def test_without_losses_no_loss_curves(make_run):
    rows = [row.model_copy(update={"val_loss": None}) for row in epoch_rows(planned(3), 0.9)]
    facts = page.gather([make_run([(planned(3), "finished", rows)])])
    assert comparison.losses(facts) is None
    assert comparison.curves(facts) is not None


def test_runs_on_different_data_have_no_recommended_row(make_run):
    runs = [
        make_run([finished(planned(depth), 0.9) for depth in (1, 3)], name=name, recipe={"data": {"dataset": name}})
        for name in ("digits", "cifar10")
    ]
    facts = page.gather(runs)
    assert comparison.differences(facts) is None
    assert [row[""] for row in comparison.depths(facts).table] == [""] * 4
    assert comparison.score(facts) is not None
