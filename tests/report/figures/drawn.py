"""What is on a figure and where, once it is drawn."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from raysweep.report.figures.style import styled

Place = tuple[str, Bbox]
"""A text and where it is, in pixels."""


@styled
def texts(figure: Figure) -> list[Place]:
    """Every visible text of a figure; of numbers at axes those within their limits."""
    FigureCanvasAgg(figure).draw()
    hidden = {text for axes in figure.axes for text in _out_of_view(axes)}
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in hidden]
    return [(text.get_text(), text.get_window_extent()) for text in shown]


def _out_of_view(axes: Axes) -> Iterator[Text]:
    """Labels of ticks beyond an axis's limits, and those switched off."""
    for axis, part in ((axes.xaxis, 0), (axes.yaxis, 1)):
        low, high = sorted(axis.get_view_interval())
        for label in (label for which in ("major", "minor") for label in axis.get_ticklabels(which=which)):
            if not low <= label.get_position()[part] <= high:
                yield label
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            yield tick.label2


def beyond(figure: Figure) -> list[str]:
    """Texts that the figure's edges cut, by more than rounding."""
    edge = figure.bbox
    return [
        text
        for text, box in texts(figure)
        if box.x0 < edge.x0 - 2 or box.x1 > edge.x1 + 2 or box.y0 < edge.y0 - 2 or box.y1 > edge.y1 + 2
    ]


def headings(figure: Figure) -> list[Place]:
    """Titles of the axes."""
    names = {axes.get_title(loc="left") for axes in figure.axes}
    return [(text, box) for text, box in texts(figure) if text in names]


def overlaps(places: list[Place]) -> list[tuple[str, str]]:
    """Pairs of texts of which one lies on the other."""
    return [
        (one, other)
        for number, (one, box) in enumerate(places)
        for other, its in places[number + 1 :]
        if box.overlaps(its)
    ]


def legend_of(figure: Figure) -> list[str]:
    """Entries of the legend below the axes."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def heading(axes: Axes) -> str:
    """Title of one set of axes, on one line."""
    return axes.get_title(loc="left").replace("\n", " ")
