"""What a type checker has to say of wrap_httpx with clients of httpx."""

import httpx
from typing_extensions import assert_type

from agent_gateway_client import trace_headers, unwrap, wrap_httpx


class OwnClient(httpx.AsyncClient):
    """A user's own class."""


def the_type_stays(client: httpx.Client, async_client: httpx.AsyncClient, own: OwnClient) -> None:
    assert_type(wrap_httpx(client), httpx.Client)
    assert_type(wrap_httpx(async_client), httpx.AsyncClient)
    assert_type(wrap_httpx(own), OwnClient)
    assert_type(wrap_httpx(client, ["http://localhost:5000/gateway"]), httpx.Client)
    assert_type(wrap_httpx(client, gateways=("http://localhost:5000/gateway",)), httpx.Client)
    assert_type(unwrap(wrap_httpx(async_client)), httpx.AsyncClient)
    assert_type(trace_headers("http://localhost:5000/gateway"), dict[str, str])


def anything_else_is_refused(client: httpx.Client) -> None:
    # An unused "type: ignore" is an error in strict mode, so each of these lines has to be one.
    wrap_httpx("http://localhost:5000/gateway")  # type: ignore[type-var]
    wrap_httpx(object())  # type: ignore[type-var]
    wrap_httpx(httpx)  # type: ignore[type-var]
    wrap_httpx(client, gateways=[5000])  # type: ignore[list-item]
    wrap_httpx()  # type: ignore[call-arg]
