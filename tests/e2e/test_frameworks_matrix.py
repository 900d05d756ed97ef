"""instrument() against a real gateway: every framework on httpx, httpx2 or aiohttp, with autolog off and on."""

from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.columns import frameworks
from tests.support.matrix import Cell, Columns, assert_cell, assert_other_hosts_get_nothing, columns_of, each_cell

columns = columns_of(frameworks)


@each_cell(frameworks, "Frameworks with instrument()")
def test_frameworks(cell: Cell, autolog: str, columns: Columns):
    """Each call of the cell has one mirror, below the span of that call, and its tokens are counted once."""
    assert_cell(cell, columns[autolog], autolog)


def test_other_hosts_get_nothing(gateway: DemoGateway):
    """If a gateway redirects to another host, the request there has no trace context."""
    assert_other_hosts_get_nothing(frameworks, gateway)
