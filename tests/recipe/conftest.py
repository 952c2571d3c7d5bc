"""Recipe files, and what is said of wrong ones."""

import pytest

from raysweep.recipe import RecipeError, load


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        path = tmp_path / "my.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


@pytest.fixture
def problems():
    """The sentences that answer a recipe with mistakes, one each."""

    def said(source, *overrides):
        with pytest.raises(RecipeError) as caught:
            load(source, overrides)
        assert str(caught.value) == "\n".join(caught.value.problems)
        return caught.value.problems

    return said
