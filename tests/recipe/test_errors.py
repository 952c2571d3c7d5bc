import pytest

from raysweep.recipe import RecipeError, near


def test_near_does_not_list_everything():
    hint = near("zzz", [f"module{index}" for index in range(1_200)])
    assert hint.startswith("choose one of module0, module1, ")
    assert hint.endswith("module29, … (1,200 in all)")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Depht", "did you mean depth?"), ("qqqq", "choose one of depth, lr, seed")],
)
def test_near(name, hint):
    assert near(name, ["depth", "lr", "seed"]) == hint


def test_problems_are_lines_that_a_terminal_shows():
    error = RecipeError("a\nb", "\x1b[31m \udce9 été 漢")
    assert error.problems == (r"a\nb", r"\x1b[31m \udce9 été 漢")
