import warnings

from raysweep.report.figures.confusion import confusion
from raysweep.report.figures.style import png
from tests.report.synthetic_runs import final_result


def test_confusion_states_the_most_frequent():
    axes = confusion(final_result()).axes[0]
    assert axes.get_title(loc="left") == "Most frequent confusion: 8 taken for 1 (6)"


def test_classes_that_no_font_can_draw_are_numbered():
    names = ("cat", *("\U000ffffd" for _ in range(9)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that is missing
        figure = confusion(final_result(class_names=names))
        png(figure)
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "Most frequent confusion: class 9 taken for class 2 (6)"
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == ["cat", "class 2", "class 3"]
