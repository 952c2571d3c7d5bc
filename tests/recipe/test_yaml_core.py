"""YAML of recipes: what plain text means, what is refused, and that what is written is read back."""

import math

import pytest

from raysweep.recipe.yaml_core import DEEPEST, MOST_ALIASES, YamlError, comment, dumps, loads


def refused(text):
    with pytest.raises(YamlError) as caught:
        loads(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- plain values ----


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # whole numbers are decimal
        ("0", 0),
        ("17", 17),
        ("-3", -3),
        ("+3", 3),
        # floats need neither a point nor the sign of an exponent
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-1.5e+2", -150.0),
        ("0.0", 0.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        # truth and nothing
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("Null", None),
        ("~", None),
        ("", None),
        # what YAML 1.1 reads otherwise is text
        ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("0b11", "0b11"),
        ("2024-01-31", "2024-01-31"),
        ("<<", "<<"),
        ("=", "="),
        ("inf", "inf"),
        ("nan", "nan"),
        ("1e", "1e"),
        (".", "."),
        ("-", None),
        ("tRUE", "tRUE"),
        # quotes make text of everything
        ("'17'", "17"),
        ('"true"', "true"),
        ("'017'", "017"),
        ("''", ""),
    ],
)
def test_plain_value(text, value):
    (found,) = loads(f"[{text}]") if text not in ("", "-") else [loads(text)]
    expected = [None] if text == "-" else value
    assert found == expected
    assert type(found) is type(expected)


def test_not_a_number():
    (found,) = loads("[.nan]")
    assert math.isnan(found)


def test_collections_keep_their_order():
    text = "b: [1, 2.0, x]\na:\n  - {deep: null}\n  - |\n    two\n    lines\n"
    tree = {"b": [1, 2.0, "x"], "a": [{"deep": None}, "two\nlines\n"]}
    assert loads(text) == tree
    assert list(loads(text)) == ["b", "a"]


def test_keys_are_text():
    assert loads("{1: a, true: b, null: c, 1e-3: d, 017: e}") == dict(
        zip(["1", "true", "null", "1e-3", "017"], "abcde", strict=True)
    )


def test_a_value_may_have_a_name():
    assert loads("a: &one [1, 2]\nb: *one") == {"a": [1, 2], "b": [1, 2]}


# ---- what is refused ----


@pytest.mark.parametrize(
    ("text", "decimal"), [("017", 17), ("-017", -17), ("+017", 17), ("00", 0), ("08", 8), ("0000123", 123)]
)
def test_a_number_in_two_readings(text, decimal):
    problem = refused(f"a: {text}")
    assert f"{text} may be read as {decimal} or as an octal number; write {decimal}" in problem
    assert "line 1, column 4" in problem


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.getcwd []", "!!binary aGk=", "!!set {a, b}", "!!timestamp 2024-01-31", "!mine 3"],
)
def test_tags(text):
    assert "not supported" in refused(f"a: {text}")


@pytest.mark.parametrize(
    ("text", "value"), [("!!str 17", "17"), ("!!int '17'", 17), ("!!float 1", 1.0), ("!!seq [1]", [1])]
)
def test_tags_of_plain_values(text, value):
    found = loads(f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    ["!!int x", "!!int 1.5", "!!int ''", "!!float x", "!!float ''", "!!bool yes", "!!str [1]", "!!seq 3",
     "!!seq {a: 1}", "!!map 3", "!!map [1]"],
)  # fmt: skip
def test_tags_that_do_not_fit(text):
    refused(f"a: {text}")


def test_tag_of_a_key():
    assert "not supported" in refused("{!mine a: 1}")


@pytest.mark.parametrize("text", ["a: 1\na: 2", "{b: {a: 1, a: 1}}", "{1: a, '1': b}", "[{a: 1, 'a': 2}]"])
def test_a_key_twice(text):
    assert "found duplicate key" in refused(text)


@pytest.mark.parametrize("text", ["{[1]: 2}", "? {a: 1}\n: 2"])
def test_a_key_that_is_no_word(text):
    assert "a key must be a word" in refused(text)


def test_too_many_aliases():
    def many(count):
        return "a: &a [1]\nb: [" + ", ".join(["*a"] * count) + "]"

    assert loads(many(MOST_ALIASES))["b"] == [[1]] * MOST_ALIASES
    assert f"more than {MOST_ALIASES} aliases" in refused(many(MOST_ALIASES + 1))


def test_aliases_of_aliases():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert "aliases" in refused("\n".join(lines))


def test_a_value_inside_itself():
    refused("a: &a [*a]")


def test_deep_nesting():
    def nested(levels):
        return "[" * levels + "]" * levels

    found = loads(nested(DEEPEST - 1))
    for _ in range(DEEPEST - 2):
        (found,) = found
    assert found == []
    for levels in (DEEPEST + 1, 5_000):
        assert "nested too deep" in refused(nested(levels))


@pytest.mark.parametrize("text", ["a: b\0c", "\0", "a: '\0'", "a: \x07", "a: \ud800", "a: \ufffe"])
def test_characters_that_are_no_text(text):
    assert "special characters are not allowed" in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "[1",
        "{a",
        "a: b: c",
        "*nowhere",
        "'",
        "a:\n\t- 1",
        "--- 1\n--- 2",
        "@x",
        "%x",
        "- 1\nb",
        r'"\x"',
        r'"\U00110000"',
    ],
)
def test_no_yaml(text):
    refused(text)


def test_too_many_digits():
    assert loads("9" * 30) == int("9" * 30)
    for text in ("9" * 31, "-" + "9" * 31, "9" * 5_000):
        assert "too many digits" in refused(text)
    refused("0" + "9" * 5_000)


# ---- what is written is read back ----

NASTY = (
    "", " ", "a", " a", "a ", "a b", "1", "-1", "+1", "017", "1e5", "1e-3", "1.", ".5", ".inf", ".nan", "0x1f", "0o17",
    "1_000", "1:30", "2024-01-31", "null", "Null", "~", "true", "False", "yes", "no", "on", "off", "y", "n", ": ", ":",
    "a: b", "a:", ":a", "# x", "a # x", "a #", "#", "-", "- a", "--", "---", "...", "?", "? a", "*a", "&a", "!a",
    "!!int", "|", ">", "%a", "@a", "`a`", "[", "]", "[a", "{", "}", "{a", ",", "a, b", "'", "''", "'a", '"', '"a"',
    "\\", "\\n", "a\nb", "\n", "a\n", "\na", "a\n\nb ", " \n ", "\t", "a\tb", "\r", "a\r\nb", "\x85", "\u2028",
    "\xa0", "\ufeff", "a\ufeffb", "été", "日本", "😀", "\x07", "\x7f", "\x1b[0m", "${x}", "<<", "=", "~x",
    "x" * 200, "word " * 60, "9" * 40,
)  # fmt: skip


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_text_comes_back(text):
    for tree in (text, [text], {text: text}, {"a": {"b": [text, {text: [text]}]}}, [[text], [[text]]]):
        found = loads(dumps(tree))
        assert found == tree
    assert loads(dumps({"a": text}))["a"] == text


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, 1, -1, 10**29, 0.0, -0.0, 1.0, 1e-3, 1e-5, 1e5, 1e16, 1e22, 1e300, 5e-324, 0.1 + 0.2,
        1.7976931348623157e308, math.inf, -math.inf, [], {}, [[]], [{}], {"a": []}, {"a": {}}, [None, [None]],
    ],
)  # fmt: skip
def test_value_comes_back(value):
    for tree in (value, [value, value], {"a": value}, {"a": [value, {"b": value}]}):
        found = loads(dumps(tree))
        assert (found, repr(found)) == (tree, repr(tree))


def test_not_a_number_comes_back():
    assert math.isnan(loads(dumps({"a": math.nan}))["a"])


def test_what_is_written_has_no_aliases_and_keeps_its_order():
    shared = [1, 2]
    text = dumps({"b": shared, "a": shared, "é": [shared] * (MOST_ALIASES + 1)})
    assert "*" not in text
    assert "é" in text
    assert list(loads(text)) == ["b", "a", "é"]
    assert loads(text)["é"] == [[1, 2]] * (MOST_ALIASES + 1)


@pytest.mark.parametrize("text", ["&a [*a]", "&a {b: *a}", "&a [[1, {b: *a}]]"])
def test_a_value_that_holds_itself(text):
    assert "holds itself" in refused(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a", ""),
        ("a #1", "#1"),
        ("a#1", ""),
        ("'a #1'", ""),
        ('["#", b] # c', "# c"),
        ("[a, # b\n c]", "# b"),
        ("#", "#"),
    ],
)
def test_comments(text, found):
    assert comment(text) == found
