"""docs/attributes.md names each attribute that a mirror can have, on the right span, and no other."""

import ast
import re
from itertools import product
from pathlib import Path

import pytest

from agent_gateway_client.server import mirror
from tests.support.source import syntax_tree

PAGE = (Path(__file__).parents[2] / "docs" / "attributes.md").read_text()


def said_by(function: str) -> set[tuple[str | None, str | None]]:
    """What a function of mirror.py yields: names for MLflow and for OTLP.

    A name in a variable is the other of two, or the first of each tuple that a loop goes through.
    """
    tree = syntax_tree(Path(mirror.__file__))
    (body,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    # A route is said where there is no link.
    variables = {
        node.targets[0].id: [node.value.orelse.value]
        for node in ast.walk(body)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.IfExp)
        and isinstance(node.value.orelse, ast.Constant)
    }
    variables |= {
        node.target.elts[0].id: [item.elts[0].value for item in node.iter.elts]
        for node in ast.walk(body)
        if isinstance(node, ast.For) and isinstance(node.target, ast.Tuple) and isinstance(node.iter, ast.Tuple)
    }
    found = set()
    for node in ast.walk(body):
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
            mlflow, otlp = (
                variables[item.id] if isinstance(item, ast.Name) else [ast.literal_eval(item)]
                for item in node.value.elts[:2]
            )
            found |= set(product(mlflow, otlp))
    return found


def documented(title: str) -> set[tuple[str | None, str | None]]:
    """The names in the second and third column of the table below a heading."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[2:4] for line in section.splitlines() if line.startswith("| ")][1:]
    return {(name_in(mlflow), name_in(otlp)) for mlflow, otlp in rows}


def name_in(cell: str) -> str | None:
    match = re.fullmatch(r" (?:`([^`]+)` )?", cell)
    assert match, cell
    return match[1]


@pytest.mark.parametrize(
    ("title", "function"),
    [
        ("The gateway's span", "_call_facts"),
        ("The span of a provider attempt", "_attempt_facts"),
        ("The span of a model server's run", "_engine_facts"),
    ],
)
def test_the_page_is_the_vocabulary(title: str, function: str):
    said = said_by(function)
    assert len(said) > 5
    in_page = documented(title)
    assert {mlflow for mlflow, _ in said} - {None} == {mlflow for mlflow, _ in in_page} - {None}
    assert {otlp for _, otlp in said} - {None} == {otlp for _, otlp in in_page} - {None}


def test_what_every_mirror_has_is_named():
    for name in ("mlflow.traceRequestId", "mlflow.spanType", "service.name", "exception.type"):
        assert f"`{name}`" in PAGE
        assert f'"{name}"' in Path(mirror.__file__).read_text()
