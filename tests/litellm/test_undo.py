# ruff: noqa: F811 - fixtures that are imported are arguments too.
"""instrument_litellm(): what it replaces and restores, and a missing or different LiteLLM."""

import subprocess
import sys
import weakref
from importlib import metadata
from typing import Any

import mlflow
import mlflow.litellm
import pytest

from agent_gateway_client import instrument, instrument_litellm, trace_headers, uninstrument
from agent_gateway_client._install import install_command
from agent_gateway_client._patching import PatchSet
from agent_gateway_client.demo.provider import Provider
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.http import _process_wide as instrumentation
from agent_gateway_client.litellm import _instrument as adapter
from tests.support.client import (
    GATEWAY,
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
    warnings_in,
)
from tests.support.litellm import (
    MESSAGES,
    arguments_for,
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
    switch_autolog_off,
    switch_autolog_on,
)

pytestmark = in_one_loop


def replaced() -> dict[str, Any]:
    """Return the current objects at each place that instrument_litellm() or instrument() replaces."""
    places = [*adapter._patches._patches.values(), *instrumentation._patches._patches.values()]
    return {f"{place._owner}.{place._name}": vars(place._owner).get(place._name) for place in places}


def is_same(before: dict[str, Any]) -> bool:
    now = replaced()
    return all(now[name] is value for name, value in before.items())


def test_everything_is_put_back():
    """Undone in any order of the handles, every attribute is the very same object as before."""
    instrument_litellm(GATEWAY).uninstrument()
    before = replaced()
    assert len(before) > 10
    first, second = instrument_litellm(GATEWAY), instrument_litellm("http://other.test")
    assert not any(now is original for now, original in zip(replaced().values(), before.values(), strict=True))
    for handle in (first, first):
        handle.uninstrument()
        assert not is_same(before)
    second.uninstrument()
    assert is_same(before)
    with instrument_litellm(GATEWAY):
        assert not is_same(before)
    assert is_same(before)


def test_repeating_it_keeps_nothing():
    """The same URL repeatedly, as from a notebook's cell: no handle is kept, and each is undone once."""
    instrument_litellm(GATEWAY).uninstrument()
    before = replaced()
    first = instrument_litellm(GATEWAY)
    handles = len(adapter._patches.handles), len(instrumentation._patches.handles)
    forgotten = [weakref.ref(instrument_litellm(GATEWAY)) for _ in range(100)]
    second = instrument_litellm(GATEWAY)
    assert [ref() for ref in forgotten] == [None] * 100
    assert (len(adapter._patches.handles), len(instrumentation._patches.handles)) == handles
    for handle in (first, first, second):
        handle.uninstrument()
    assert not is_same(before)
    for _ in forgotten:
        instrumentation._counts[first._handle] -= 1
    with instrument_litellm(GATEWAY):
        assert not is_same(before)
    assert is_same(before)


def test_it_is_independent_of_instrument():
    """uninstrument() undoes only instrument(); the handle of one does not undo the other."""
    with mlflow.start_span("agent") as span, instrument_litellm(GATEWAY) as handle:
        other = instrument("http://other.test")
        uninstrument()
        assert trace_headers(GATEWAY) == {"traceparent": named_by(span)}
        other = instrument("http://other.test")
        handle.uninstrument()
        assert trace_headers(GATEWAY) == {}
        assert trace_headers("http://other.test") == {"traceparent": named_by(span)}
        other.uninstrument()


def test_after_the_undo_autolog_is_as_it_was(shared_provider: Provider):
    """Undone, a call has no header, and autolog creates its span as without this package."""
    shared_provider.clear()
    switch_autolog_on()
    with instrument_litellm(shared_provider.url):
        pass
    with mlflow.start_span("agent") as agent:
        litellm.completion(messages=MESSAGES, **arguments_for(shared_provider))
        (own,) = ended()
    switch_autolog_off()
    assert sent(shared_provider) == [[]]
    assert f"{own.parent.span_id:016x}" == agent.span_id


@pytest.mark.parametrize("environment", [None, "localhost:5000"])
def test_bad_gateways_are_an_error_at_once(environment: str | None, monkeypatch: pytest.MonkeyPatch):
    """An invalid gateway raises an error at configuration; the message has the function's own name."""
    if environment:
        monkeypatch.setenv("AGENT_GATEWAY_URLS", environment)
    message = (
        "no scheme" if environment else r"like instrument_litellm\('http://localhost:5000/gateway'\), or set AGENT_"
    )
    with pytest.raises(ConfigurationError, match=message):
        instrument_litellm()


def test_the_gateways_are_those_of_the_environment_by_default(monkeypatch: pytest.MonkeyPatch):
    """Without an argument AGENT_GATEWAY_URLS is read."""
    monkeypatch.setenv("AGENT_GATEWAY_URLS", GATEWAY)
    with instrument_litellm() as handle:
        assert list(handle.gateways) == [GATEWAY]


@pytest.mark.usefixtures("guards_hold")
@each_way
async def test_what_litellm_no_longer_has_is_said_once(
    is_async: bool, provider: Provider, autolog: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """If LiteLLM has changed, one warning has its version, calls work, and the header is there."""
    patches = PatchSet(adapter._REPLACEMENTS, "it does not matter here", adapter._changed)
    monkeypatch.delattr(litellm.litellm_core_utils.streaming_handler.CustomStreamWrapper, "__next__")
    with other_patches(patches), instrument_litellm(provider.url), mlflow.start_span("agent"):
        await make_call("completion", provider, is_async=is_async)
    assert sent(provider) == [[named_by_otel(*ended())]]
    (warning,) = warnings_in(caplog)
    assert "CustomStreamWrapper.__next__" in warning
    assert f"litellm {metadata.version('litellm')}" in warning
    monkeypatch.undo()


@pytest.mark.usefixtures("guards_hold")
@each_way
async def test_nothing_inside_fails_a_call(
    is_async: bool, provider: Provider, autolog: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """If MLflow cannot start the span, the call is made with the active span's header and one warning."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("mlflow.tracking.MlflowClient.start_span", fail)
    monkeypatch.setattr("mlflow.tracking.MlflowClient.start_trace", fail)
    with mlflow.start_span("agent") as agent:
        for _ in range(2):
            await make_call("completion", provider, is_async=is_async)
    assert sent(provider) == [[named_by(agent)]] * 2
    (warning,) = [text for text in warnings_in(caplog) if "agent-gateway-client" in text]
    assert "Could not begin the span" in warning


def test_without_litellm_the_error_says_what_to_install():
    """Without LiteLLM the error is one sentence; a missing module of LiteLLM's own is not mistaken for it."""
    program = (
        "import sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "try:\n"
        "    from agent_gateway_client.litellm import instrument_litellm\n"
        "except ImportError as error:\n"
        "    print(type(error).__name__, error)\n"
    )

    def output(missing: str) -> str:
        command = [sys.executable, "-c", program, missing]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert output("litellm") == (
        f"MissingDependencyError instrument_litellm() needs the package litellm: {install_command('litellm')}\n"
    )
    assert output("dotenv").startswith("ModuleNotFoundError ")


@each_way
async def test_with_mlflow_tracing_alone_calls_name_the_active_span(
    is_async: bool, provider: Provider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """If LiteLLM's logger lacks what it needs from MLflow, autolog is not waited for, and nothing is logged."""
    monkeypatch.delattr(mlflow.tracking, "MlflowClient", raising=False)
    mlflow.litellm.autolog()
    with mlflow.start_span("agent") as agent:
        await make_call("completion", provider, is_async=is_async)
    assert sent(provider) == [[named_by(agent)]]
    assert [text for text in warnings_in(caplog) if "agent-gateway-client" in text] == []
