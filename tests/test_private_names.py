"""Every use of a private name of another project has a test that takes the name away."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import agent_gateway_client
from tests.support.source import syntax_tree

ROOT = Path(__file__).parents[1]
PACKAGE = Path(agent_gateway_client.__path__[0])

PRIVATE = re.compile(r"_[a-z]\w*\Z")
REPLACED = re.compile(r"[\w.]*:[A-Za-z][\w]*(?:\.\w+|:\w+)*[?|]?\Z")
"""``module:class.function``, as find_patch() takes it, or the end of one."""

PYTHONS = {"_asdict", "_replace", "_exit", "_getframe"}
"""Documented in spite of the underscore."""

CASES = {
    "_langchain_runs/__init__.py": "langchain/test_moved.py::test_instrument_without_the_methods",
    "_langchain_runs/_methods.py": "langchain/test_moved.py::test_a_method_that_has_moved",
    "_langchain_runs/_mlflow.py": "langchain/test_patches.py::test_another_mlflow",
    "_patching.py": "test_patching.py",
    "active_span.py": "test_active_span.py::test_when_mlflow_moves_it_one_warning_names_the_version",
    "http/_aiohttp.py": "http/test_moved.py::test_a_function_that_has_moved",
    "http/_headers.py": "http/test_headers.py::test_trace_headers_never_fail_a_call",
    "http/_httpx.py": "http/test_moved.py::test_a_function_that_has_moved",
    "http/_urllib3.py": "http/test_moved.py::test_a_function_that_has_moved",
    "http/_websockets.py": "http/test_moved.py::test_a_function_that_has_moved",
    "http/_opentelemetry.py": "http/test_opentelemetry.py::test_an_opentelemetry_without_the_switch",
    "http/_propagate.py": "http/test_process_wide.py::test_nothing_inside_fails_a_request",
    "litellm/_calls.py": "litellm/test_moved.py::test_a_logging_object_that_has_changed",
    "litellm/_instrument.py": "litellm/test_moved.py::test_a_function_that_has_moved",
    "litellm/_logger.py": "litellm/test_moved.py::test_a_logger_that_has_moved",
    "litellm/_rust.py": "litellm/test_moved.py::test_a_function_that_has_moved",
    "openai.py": "openai/test_wrap.py::test_an_sdk_that_moved_its_http_client_is_one_warning",
    "server/export/mlflow_columns.py": "server/export/test_moved.py::test_the_columns_of_traces",
    "server/export/mlflow_server.py": "server/export/test_moved.py::test_the_clients_requests",
    "server/export/mlflow_store.py": "server/export/test_moved.py::test_the_servers_tracking_store",
    "server/litellm_proxy/_callback.py": "server/litellm_proxy/test_callback.py::"
    "test_a_shape_that_is_not_known_is_no_matter_for_the_request",
    "server/litellm_proxy/_pages.py": "server/litellm_proxy/test_callback.py::"
    "test_a_litellm_whose_application_is_elsewhere",
    "server/litellm_proxy/_requests.py": "server/litellm_proxy/test_requests.py::test_without_a_proxy",
    "server/mlflow_gateway/_app.py": "server/mlflow_gateway/test_app.py::test_an_mlflow_without_its_tracer_provider",
    "server/mlflow_gateway/_permissions.py": "server/mlflow_gateway/test_permissions.py::"
    "test_mlflow_asks_in_another_way",
    "server/observed/metrics.py": "server/observed/test_metrics.py::test_what_goes_wrong_costs_no_call",
}
"""The files that use private names of others, and the test that takes them away."""


def own_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module of the package defines or sets itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def touches(tree: ast.AST) -> Iterator[str]:
    """Yield private names of other projects: attributes, imports, paths of replaced functions, and guards of those."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.match(node.attr):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("agent_gateway_client"):
            yield from (alias.name for alias in node.names if PRIVATE.match(alias.name))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "." in node.value
            and REPLACED.match(node.value)
        ):
            yield node.value
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Guard" and len(node.args) > 1:
            # A guard that gives the version of a distribution.
            yield "Guard()"


def names_of_ours() -> set[str]:
    return {name for path in PACKAGE.rglob("*.py") for name in own_names(syntax_tree(path))}


@pytest.mark.slow
def test_every_use_has_a_test():
    """A file that begins to use a private name needs a case, and a case needs a file that does."""
    ours = names_of_ours() | PYTHONS
    found = {
        str(path.relative_to(PACKAGE)): sorted(set(touches(syntax_tree(path))) - ours) for path in PACKAGE.rglob("*.py")
    }
    using = {path: names for path, names in found.items() if names}
    assert set(using) - set(CASES) == set(), {path: using[path] for path in set(using) - set(CASES)}


@pytest.mark.parametrize("case", sorted(set(CASES.values())))
def test_a_case_exists(case: str):
    """The tests in the list are there."""
    file, _, name = case.partition("::")
    text = (ROOT / "tests" / file).read_text()
    assert not name or re.search(rf"def {name}\(", text)
