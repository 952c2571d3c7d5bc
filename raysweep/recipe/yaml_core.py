"""YAML as recipes use it: the core schema of YAML 1.2, plain values alone.

PyYAML reads YAML 1.1, in which `017` is 15, `1:30` is 90, `no` is false and `1e-3` is a
string. Here numbers are decimal, only `true` and `false` are truth values, and a number
that could be read in two ways is refused. So are tags, keys that occur twice and more than
a few aliases: a recipe may come from a stranger.

Reference: https://yaml.org/spec/1.2.2/#103-core-schema
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.emitter import Emitter
from yaml.nodes import MappingNode, Node, ScalarNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.representer import SafeRepresenter
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner
from yaml.serializer import Serializer

TAG = "tag:yaml.org,2002:"
PLAIN_TAGS = frozenset(TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
DEEPEST = 40
"""Levels of nesting that are read."""
MOST_ALIASES = 20
"""Aliases of aliases make a small file very large."""


class YamlError(ValueError):
    """Text that cannot be read, with the reason and the place in one line."""


class _Resolver(BaseResolver):
    """What a plain scalar is."""


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _firsts = ["" if character == "\0" else character for character in _first]
    _Resolver.add_implicit_resolver(TAG + _kind, re.compile(f"^(?:{_pattern})$"), _firsts)


class _Loader(Reader, Scanner, Parser, Composer, SafeConstructor, _Resolver):
    """As yaml.SafeLoader is put together, with another resolver."""

    def __init__(self, stream: str) -> None:
        Reader.__init__(self, stream)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        _Resolver.__init__(self)
        self._aliases = 0
        self._around: list[str | None] = []  # anchors of the values around the one that is read

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Refuse nesting without end, aliases in great number and values that hold themselves."""
        event = self.peek_event()
        is_alias = isinstance(event, yaml.AliasEvent)
        self._aliases += is_alias
        if wrong := self._what_is_wrong(event.anchor if is_alias else ""):
            raise ConstructorError(None, None, wrong, event.start_mark)
        self._around.append(getattr(event, "anchor", None))
        try:
            return super().compose_node(parent, index)
        finally:
            self._around.pop()

    def _what_is_wrong(self, alias: str) -> str:
        if len(self._around) >= DEEPEST:
            return "values are nested too deep"
        if self._aliases > MOST_ALIASES:
            return f"more than {MOST_ALIASES} aliases"
        return f"the value of &{alias} holds itself" if alias and alias in self._around else ""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """Refuse every tag but those of plain values."""
        if node.tag not in PLAIN_TAGS:
            raise ConstructorError(None, None, f"the tag {node.tag} is not supported", node.start_mark)
        return super().construct_object(node, deep)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that occurs twice, and keys that are no text."""
        if not isinstance(node, MappingNode):
            raise ConstructorError(None, None, "expected a mapping", node.start_mark)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.tag not in PLAIN_TAGS:
                raise ConstructorError(None, None, f"the tag {key.tag} is not supported", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"found duplicate key {key.value}", key.start_mark)
            seen.add(key.value)
        return {str(key.value): self.construct_object(value, deep=True) for key, value in node.value}


def _number(loader: _Loader, node: ScalarNode) -> int:
    text = loader.construct_scalar(node)
    digits = text.lstrip("-+")
    if not digits.isascii() or not digits.isdigit():
        raise ConstructorError(None, None, f"{text} is no whole number", node.start_mark)
    if len(digits) > 30:
        raise ConstructorError(None, None, f"{text[:12]}… has too many digits", node.start_mark)
    if len(digits) > 1 and digits.startswith("0"):
        meant = f"{text} may be read as {int(text)} or as an octal number; write {int(text)}"
        raise ConstructorError(None, None, meant, node.start_mark)
    return int(text)


def _real(loader: _Loader, node: ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    try:
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise ConstructorError(None, None, f"{text} is no number", node.start_mark) from None


def _truth(loader: _Loader, node: ScalarNode) -> bool:
    text = loader.construct_scalar(node).lower()
    if text not in ("true", "false"):
        raise ConstructorError(None, None, f"{text} is neither true nor false", node.start_mark)
    return text == "true"


for _kind, _construct in (("int", _number), ("float", _real), ("bool", _truth)):
    _Loader.add_constructor(TAG + _kind, _construct)  # type: ignore[type-var]


class _Dumper(Emitter, Serializer, SafeRepresenter, _Resolver):
    """As yaml.SafeDumper is put together, so that `loads` reads what `dumps` writes."""

    def __init__(self, stream: Any, **options: Any) -> None:
        emitted = {key: options[key] for key in ("canonical", "indent", "width", "allow_unicode", "line_break")}
        Emitter.__init__(self, stream, **emitted)
        served = ("encoding", "explicit_start", "explicit_end", "version", "tags")
        Serializer.__init__(self, **{key: options[key] for key in served})
        SafeRepresenter.__init__(self, sort_keys=options["sort_keys"], default_flow_style=options["default_flow_style"])
        _Resolver.__init__(self)

    def analyze_scalar(self, scalar: str) -> Any:
        """Quote NEL, which PyYAML reads as an end of line."""
        found = super().analyze_scalar(scalar)
        if "\x85" in scalar:
            found.allow_flow_plain = found.allow_block_plain = found.allow_single_quoted = found.allow_block = False
        return found

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value as often as it occurs."""
        return True


def loads(text: str) -> Any:
    """The value that YAML text holds: mappings with text as keys, lists, text, numbers, truth values, None.

    Raises:
        YamlError: the text is no YAML, or more than plain values.
    """
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError(" ".join(str(error).split())) from None


def comment(text: str) -> str:
    """The first comment in YAML text that can be read; empty where there is none."""
    at = 0
    for token in yaml.scan(text):
        between = text[at : token.start_mark.index]
        if "#" in between:
            return between[between.index("#") :].partition("\n")[0]
        at = max(at, token.end_mark.index)
    rest = text[at:]
    return rest[rest.index("#") :] if "#" in rest else ""


def dumps(tree: Any) -> str:
    """YAML text that `loads` reads as an equal value; keys stay in order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
