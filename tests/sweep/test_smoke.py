"""The same recipe on little."""

from raysweep.recipe import Recipe
from raysweep.sweep.smoke import shrink
from tests.data.test_groups import patients
from tests.data.test_tables import table_data, write_table


def test_a_table_is_not_needed(tmp_path):
    path = write_table(tmp_path / "labels.csv", patients(tmp_path), ("file", "label", "patient"))
    data = shrink(Recipe(data=table_data(path, group="patient"))).data
    assert (data.dataset, data.root, data.labels, data.group) == ("fake:2", None, None, None)
