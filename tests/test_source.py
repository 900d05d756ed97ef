"""tests/support/source.py."""

import ast
import gc
from pathlib import Path

import pytest

from tests.support.source import syntax_tree


def parse_deeper(depth: int) -> None:
    if depth:
        parse_deeper(depth - 1)
    else:
        ast.parse("done = True")


class Finalized:
    """Parses when it is collected, from further down the stack."""

    def __init__(self) -> None:
        self.cycle = self

    def __del__(self) -> None:
        parse_deeper(5)


@pytest.fixture
def eager_collector():
    """A collector that runs while a tree is made."""
    thresholds = gc.get_threshold()
    gc.set_threshold(50)
    yield
    gc.set_threshold(*thresholds)


def test_a_finalizer_may_parse_too(eager_collector: None):
    for _ in range(20):
        Finalized()
        assert syntax_tree(Path(__file__)).body
    assert gc.isenabled()
