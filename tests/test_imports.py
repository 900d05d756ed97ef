"""Which module imports which: no two modules of the package need each other, however far apart."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import agent_gateway_client
from tests.support.source import syntax_tree

PACKAGE = Path(agent_gateway_client.__path__[0])
Graph = dict[str, set[str]]
NAME = re.compile(r"[a-z_]+(?:\.\w+)+\Z")


def modules_below(package: Path) -> dict[str, Path]:
    """Return the files of a package by the names of their modules."""
    found = {}
    for path in package.rglob("*.py"):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_for_type_checkers(node: ast.AST) -> bool:
    test = node.test if isinstance(node, ast.If) else None
    return getattr(test, "id", getattr(test, "attr", None)) == "TYPE_CHECKING"


def imports_in(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports when it is loaded or later, in a function; not what only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.match(node.value):
            # import_module() gets it.
            yield node.value
        elif not is_for_type_checkers(node):
            yield from imports_in(node)


def packages_of(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:size]) for size in range(1, len(parts))}


def import_graph(package: Path) -> Graph:
    """Return of each module of a package those that loading it, or running its functions, makes it load."""
    modules = modules_below(package)
    graph: Graph = {name: set() for name in modules}
    for name, path in modules.items():
        for imported in imports_in(syntax_tree(path)):
            # What is no module is a name that the module before the dot has.
            home = imported if imported in modules else imported.rpartition(".")[0]
            if home in modules:
                # Loading a module loads the packages it is in; this module's own are being loaded already.
                graph[name] |= {home, *(packages_of(home) - packages_of(name))} - {name}
    return graph


def circle_in(graph: Graph) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def test_there_is_no_circle():
    """A module can be read, tested and moved without those that stand on it."""
    graph = import_graph(PACKAGE)
    assert "agent_gateway_client.w3c" in graph["agent_gateway_client.active_span"], "imports are seen"
    assert "agent_gateway_client._langchain_runs._methods" in graph["agent_gateway_client._langchain_runs"], (
        "by name too"
    )
    assert circle_in(graph) == []


CIRCLES = {
    "at the top": ("from package.b import g\n", "import package.a\n"),
    "in a function": ("from package.b import g\n", "def f():\n    from package import a\n"),
    "by its name": ("from package.b import g\n", "def f():\n    return import_module('package.a')\n"),
    "in a branch": ("from package.b import g\n", "try:\n    from package.a import f\nexcept ImportError:\n    pass\n"),
    "through the package": ("from package.b import g\n", "from package import name\n"),
}


@pytest.mark.parametrize(("a", "b"), CIRCLES.values(), ids=CIRCLES)
def test_a_circle_would_be_found(a: str, b: str, tmp_path: Path):
    """Whatever the form of the import."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from package.a import f as name\n")
    (package / "a.py").write_text(a)
    (package / "b.py").write_text(b)
    assert set(circle_in(import_graph(package))) >= {"package.a", "package.b"}


def test_what_only_type_checkers_see_is_no_circle(tmp_path: Path):
    """Nothing is loaded for it."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from package.b import g\n")
    (package / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from package.a import f\n")
    assert circle_in(import_graph(package)) == []
