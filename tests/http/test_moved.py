# ruff: noqa: F811 - fixtures that are imported are arguments too.
"""instrument() with an HTTP library that has moved a name: requests work, and one warning has the version."""

from importlib import metadata
from importlib.util import find_spec

import mlflow
import pytest

from agent_gateway_client import instrument
from agent_gateway_client.http import _process_wide as instrumentation
from tests.http.test_stacks import CLIENTS, server  # noqa: F401
from tests.support.client import (
    isolated,  # noqa: F401
    named_by,
    warnings_in,
)
from tests.support.http_server import HttpServer

WHOSE = {"aiohttp": "aiohttp", "urllib3": "urllib3", "requests": "requests", "websockets": "websockets"}
FOR_REDIRECTS = (
    "aiohttp:ClientSession._request",
    "urllib3.poolmanager:PoolManager.urlopen",
    "requests:Session.rebuild_method",
    "websockets.asyncio.client:connect.__await_impl__|websockets.asyncio.client:connect.connect",
    "websockets.sync.client:reconnect.connect|websockets.sync.client:connect",
)
"""Functions for redirects; the header of other requests does not depend on them."""

PATHS = [path for path in instrumentation._patches._replacements if find_spec(path.partition(":")[0].split(".")[0])]


def client_of(path: str) -> str:
    library, _, function = path.partition(":")
    return WHOSE.get(library.split(".")[0]) or f"{library}.{function.split('.')[0]}"


@pytest.mark.usefixtures("guards_hold")
@pytest.mark.parametrize("path", PATHS)
async def test_a_function_that_has_moved(
    path: str, server: HttpServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The request is sent without the trace context, if that is lost, and one warning has the path and the version."""
    moved_path = "|".join(f"{one}_moved" for one in path.split("|"))
    moved = {moved_path if key == path else key: r for key, r in instrumentation._patches._replacements.items()}
    monkeypatch.setattr(instrumentation._patches, "_replacements", moved)
    monkeypatch.setattr(instrumentation._patches, "_patches", {})
    with instrument(server.gateway), mlflow.start_span("agent") as span:
        await CLIENTS[client_of(path)](f"{server.gateway}/v1")
    assert server.sent() == [[named_by(span)] if path in FOR_REDIRECTS else []]
    (warning,) = warnings_in(caplog)
    library = path.partition(":")[0].split(".")[0]
    assert moved_path in warning
    assert f"{library} {metadata.version(library)}" in warning
