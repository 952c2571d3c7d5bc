"""How the rooms of the house stand to each other, read from the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "raysweep"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = (
    "grid", "export", "predict", "commands", "engine", "report", "sweep", "train", "features", "nets", "data", "recipe",
    "files", "quiet",
)  # fmt: skip
"""From the top to the bottom: a room imports from itself and from those below it."""
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 40
PRIVATE = {
    "ray._private": r"\bray\._private\b",
    "ray.*._internal": r"\bray(\.\w+)*\._internal\b",
    "_global_node": r"\b_global_node\b",
    "os._exit": r"\bos\._exit\b",
    "mallopt": r"mallopt",
    "__class__ =": r"\b__class__\s*=(?!=)|setattr\([^)]*__class__",
}
"""What is not public API, or changes an object's or a process's nature behind its back."""
LIGHT = ("report", "recipe", "sweep.ledger", "sweep.rows", "sweep.evidence", "sweep.rungs", "sweep.choice")
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def room_of(module: str) -> str | None:
    """The room of a module such as raysweep.nets.cut; None of the package itself and of what is not in it."""
    package, *rest = module.split(".")
    return rest[0] if package == "raysweep" and rest else None


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, text: str | None = None) -> Iterator[str]:
    """Full names of all that a file imports, wherever in it: modules, and what is taken from them."""
    tree = ast.parse(path.read_text(encoding="utf-8") if text is None else text)
    package = module_of(path) if path.stem == "__init__" else module_of(path).rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else ""
            module = base or node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _calls_an_import(node):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def _calls_an_import(node: ast.Call) -> bool:
    """Whether it is importlib.import_module("…") or __import__("…")."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__")


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of each function, from its `def` to its end."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_imports_of_every_kind_are_seen():
    text = (
        "import ray.tune as tune\nfrom raysweep import files\nfrom . import cut\nfrom ..data.pool import Pool\n"
        "def late():\n    from raysweep.engine import run\n    import_module('raysweep.grid')\n"
    )
    assert list(imports(PACKAGE / "nets" / "x.py", text)) == [
        "ray.tune", "raysweep.files", "raysweep.nets.cut", "raysweep.data.pool.Pool",
        "raysweep.engine.run", "raysweep.grid",
    ]  # fmt: skip
    assert list(imports(PACKAGE / "nets" / "__init__.py", "from .cut import Cut")) == ["raysweep.nets.cut.Cut"]


def test_every_file_is_in_a_room():
    assert {room_of(module_of(path)) for path in FILES} - {None} == set(ROOMS)


@each_file
def test_imports_go_down(path):
    """The package's own __init__ imports nothing of its rooms."""
    room = room_of(module_of(path))
    allowed = ROOMS[ROOMS.index(room) :] if room else ()
    assert [name for name in imports(path) if name.split(".")[0] == "raysweep" and room_of(name) not in allowed] == []


@each_file
def test_the_engine_alone_imports_ray(path):
    if room_of(module_of(path)) != "engine":
        assert [name for name in imports(path) if name.split(".")[0] == "ray"] == []


@pytest.mark.parametrize("module", LIGHT)
def test_what_needs_neither_torch_nor_ray_loads_neither(module):
    code = f"import sys, raysweep.{module}; print(*sorted({{'torch', 'ray'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "\n"


@each_file
def test_files_and_functions_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert [(name, lines) for name, lines in functions(path) if lines > MOST_LINES_OF_A_FUNCTION] == []


@each_file
def test_public_api_alone(path):
    text = path.read_text(encoding="utf-8")
    names = "\n".join(imports(path))
    assert [name for name, pattern in PRIVATE.items() if re.search(pattern, text) or re.search(pattern, names)] == []
