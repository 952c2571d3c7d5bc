from raysweep.report.figures.confusion import confusion
from tests.report.synthetic_runs import final_result


def test_confusion_states_the_most_frequent():
    axes = confusion(final_result()).axes[0]
    assert axes.get_title(loc="left") == "Most frequent confusion: 8 taken for 1 (6)"
