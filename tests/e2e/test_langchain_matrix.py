"""GatewayCallbackHandler against a real gateway: every way to call a model, with autolog off, on and inline."""

from tests.support.columns import langchain
from tests.support.matrix import Cell, Columns, assert_cell, columns_of, each_cell

columns = columns_of(langchain)


@each_cell(langchain, "LangChain and LangGraph")
def test_langchain(cell: Cell, autolog: str, columns: Columns):
    """Each call of the cell has one mirror, below the span of that call, and its tokens are counted once."""
    assert_cell(cell, columns[autolog], autolog)
