# ruff: noqa: F811 - fixtures that are imported are arguments too.
"""instrument_litellm() with a LiteLLM or MLflow that has moved a private name: calls work, with one warning."""

import asyncio
import sys
from importlib import metadata
from typing import Any

import mlflow
import pytest

from agent_gateway_client import instrument_litellm
from agent_gateway_client._patching import PatchSet
from agent_gateway_client.demo.provider import Provider
from agent_gateway_client.litellm import _instrument as adapter
from tests.support.client import (
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
    warnings_in,
)
from tests.support.e2e import wait_for
from tests.support.litellm import (
    autolog,  # noqa: F401
    each_way,
    ended,
    in_one_loop,
    litellm,
    make_call,
    other_patches,
    provider,  # noqa: F401
    sent,
    shared_provider,  # noqa: F401
)

pytestmark = [*in_one_loop, pytest.mark.usefixtures("guards_hold")]

VERSION = f"litellm {metadata.version('litellm')}"


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in warnings_in(caplog) if "agent-gateway-client" in text]


@pytest.mark.parametrize("what", ["function", "module"])
@pytest.mark.parametrize("path", list(adapter._REPLACEMENTS))
async def test_a_function_that_has_moved(
    path: str,
    what: str,
    provider: Provider,
    autolog: None,
    caplog: pytest.LogCaptureFixture,
):
    """Without any one of the functions the call is made with a header; a warning has the version."""
    moved = "litellm.moved:function" if what == "module" else path.rstrip("?").split("|")[-1] + "_moved"
    moved += "?" * path.endswith("?")
    replacements = {moved if key == path else key: replace for key, replace in adapter._REPLACEMENTS.items()}
    patches = PatchSet(replacements, "something is lost", adapter._changed)
    with other_patches(patches):
        with instrument_litellm(provider.url), mlflow.start_span("agent") as agent:
            await make_call("completion", provider, is_async=True)
        ((header,),) = sent(provider)
        if header != named_by(agent):
            # Another patch ends the call, at the latest when LiteLLM logs it. Autolog may log it as well.
            await asyncio.to_thread(wait_for, "the end of the span", lambda: header in map(named_by_otel, ended()))
    warnings = ours(caplog)
    assert len(warnings) == (0 if path.endswith("?") else 1)
    assert all(moved in text and VERSION in text for text in warnings)


async def test_everything_that_is_expected_is_there(provider: Provider, caplog: pytest.LogCaptureFixture):
    """This version of LiteLLM has every patched function: there is no false alarm."""
    assert ours(caplog) == []
    assert {path for path in adapter._REPLACEMENTS if not path.endswith("?")} <= set(adapter._patches._patches)


@each_way
async def test_a_logger_that_has_moved(
    is_async: bool, provider: Provider, autolog: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """If LiteLLM's MLflow logger is missing, the requests have the active span."""
    monkeypatch.setitem(sys.modules, "agent_gateway_client.litellm._logger", None)
    with mlflow.start_span("agent") as agent:
        await make_call("completion", provider, is_async=is_async)
    assert sent(provider) == [[named_by(agent)]]
    (warning,) = ours(caplog)
    assert "Could not begin the span" in warning
    assert VERSION in warning


@each_way
@pytest.mark.parametrize("name", ["start_time", "stream"])
async def test_a_logging_object_that_has_changed(
    name: str,
    is_async: bool,
    provider: Provider,
    autolog: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """If LiteLLM's object for a call lacks what we read, the requests have the active span."""

    class Without:
        def __init__(self, logging: Any) -> None:
            self._logging = logging

        def __getattr__(self, attribute: str) -> Any:
            if attribute == name:
                raise AttributeError(attribute)
            return getattr(self._logging, attribute)

    begin = adapter._begin
    monkeypatch.setattr(adapter, "_begin", lambda logging: begin(Without(logging)))
    with mlflow.start_span("agent") as agent:
        await make_call("completion", provider, is_async=is_async)
    assert sent(provider) == [[named_by(agent)]]
    (warning,) = ours(caplog)
    assert VERSION in warning


@each_way
async def test_without_the_class_of_a_streams_part(
    is_async: bool, provider: Provider, autolog: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Without one of LiteLLM's public classes that we use, the call works."""
    monkeypatch.delattr(litellm, "ModelResponseStream")
    with mlflow.start_span("agent"):
        result = await make_call("embedding", provider, is_async=is_async)
    assert result.data
    assert all(VERSION in text for text in ours(caplog))
