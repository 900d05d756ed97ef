# ruff: noqa: F811 - fixtures that are imported are arguments too.
"""instrument_litellm() with LITELLM_RUST=true, in which Python's HTTP clients do not send the request."""

from importlib.metadata import version
from typing import Any

import mlflow
import pytest

from agent_gateway_client.demo.provider import Provider
from tests.support.client import (
    TRACEPARENT,
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
)
from tests.support.litellm import (
    CLAUDE,
    CLAUDE_MESSAGES,
    each_way,
    ended,
    in_one_loop,
    litellm,
    provider,  # noqa: F401
    redirected_to,
    sent,
    shared_provider,  # noqa: F401
    switch_autolog_on,
)

if not hasattr(litellm, "rust_bridge"):
    pytest.skip("the version of litellm in this environment has no Rust bridge", allow_module_level=True)

pytestmark = in_one_loop


@pytest.fixture(autouse=True)
def rust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_RUST", "true")


async def ask(url: str, *, is_async: bool, **more: Any) -> None:
    """Make a call, and read all of its result."""
    create = litellm.anthropic.messages.acreate if is_async else litellm.anthropic.messages.create
    try:
        result = create(model=CLAUDE, api_base=url, api_key="none", **CLAUDE_MESSAGES, **more)
    except ValueError as error:
        if "not implemented for sync calls" in str(error):
            pytest.skip(f"LiteLLM {version('litellm')} has no sync calls in Rust")
        raise
    result = await result if is_async else result
    if more.get("stream"):
        assert [part async for part in result] if is_async else list(result)


@each_way
@pytest.mark.parametrize("streamed", [False, True], ids=["", "streamed"])
@pytest.mark.parametrize("autologged", [False, True], ids=["without autolog", "with autolog"])
async def test_the_header_is_on_requests_to_gateways_only(
    is_async: bool, streamed: bool, autologged: bool, provider: Provider
):
    """It has the call's own span, or the active one; a user's header is kept; other hosts get nothing."""
    if autologged:
        switch_autolog_on()
    call: dict[str, Any] = {"is_async": is_async, "stream": streamed}
    with mlflow.start_span("agent") as agent:
        await ask(provider.url, **call)
        await ask(provider.url, extra_headers={"TRACEPARENT": TRACEPARENT}, **call)
        await ask(provider.url.replace("127.0.0.1", "localhost"), **call)
    assert all("python" not in "".join(request.header("user-agent")).lower() for request in provider.requests)
    expected = [named_by_otel(ended()[0])] if autologged else [named_by(agent)]
    assert sent(provider) == [expected, [TRACEPARENT], []]


@each_way
@pytest.mark.xfail(
    raises=AssertionError, strict=True, reason="LiteLLM's Rust client follows redirects itself, with all of its headers"
)
async def test_a_redirect_to_another_host_loses_the_header(is_async: bool, provider: Provider):
    """The redirected request has no header."""
    with redirected_to(provider) as (gateway, received), mlflow.start_span("agent") as agent:
        await ask(gateway, is_async=is_async)
    if received != [[named_by(agent)]]:
        pytest.fail("the gateway itself got another header")
    assert sent(provider) == [[]]
