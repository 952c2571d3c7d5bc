"""Names in any script: a font that has the characters, or words."""

import io
import warnings

import matplotlib as mpl
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from raysweep.data import fonts
from raysweep.data.fonts import Lettering, drawable_classes, undrawn_classes


def write_font(path, characters, family):
    """A font whose every character is a square."""
    pen = TTGlyphPen(None)
    for draw, point in ((pen.moveTo, (0, 0)), (pen.lineTo, (0, 700)), (pen.lineTo, (700, 700)), (pen.lineTo, (700, 0))):
        draw(point)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", *(f"uni{ord(one):04X}" for one in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(one): f"uni{ord(one):04X}" for one in characters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """matplotlib's own fonts, and those that the test installs."""
    own = [one for one in font_manager.fontManager.ttflist if "mpl-data" in one.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)

    def install(characters, family):
        fonts._fonts_for.cache_clear()
        font_manager.fontManager.addfont(write_font(tmp_path / f"{family}.ttf", characters, family))

    fonts._fonts_for.cache_clear()
    yield install
    fonts._fonts_for.cache_clear()


def test_a_font_that_was_installed_since_matplotlib_looked_is_taken(installed, tmp_path, monkeypatch):
    file, damaged = write_font(tmp_path / "new.ttf", "猫", "New"), tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(file), str(damaged)])
    assert drawable_classes(["猫"]) == ["猫"]
    assert Lettering(["猫"]).families[-1] == "New"


@pytest.mark.parametrize("names", [("cat", "dog"), ("été", "Ωμέγα"), ("a\nb", "$x$")])
def test_what_matplotlib_has_needs_no_other_font(names, installed):
    installed("猫", "Other")
    assert Lettering(names).families == mpl.rcParams["font.family"]
    assert drawable_classes(names) == list(names)
    assert undrawn_classes(names) == ""


def test_an_installed_font_that_has_the_characters_is_taken(installed):
    installed("猫", "Cats")
    installed("犬한", "Dogs CJK")
    names = ["cat", "猫", "犬", "한"]
    assert Lettering(names).families == [*mpl.rcParams["font.family"], "Dogs CJK", "Cats"]
    assert drawable_classes(names) == names
    with mpl.rc_context({"font.family": Lettering(names).families}), warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that is missing
        figure = Figure()
        figure.text(0.5, 0.5, "cat 猫 犬 한")
        figure.savefig(io.BytesIO(), format="png")


def test_without_such_a_font_classes_are_numbered_and_the_numbers_explained(installed):
    installed("猫", "Cats")
    names = ["猫", "cat", "犬"]
    assert drawable_classes(names) == ["猫", "cat", "class 3"]
    assert undrawn_classes(names) == (
        "No installed font has the characters of some class names; in pictures class 3 is 犬."
    )
