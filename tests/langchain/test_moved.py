"""The callback handler with a LangChain that has moved a name: runs work, and one warning has the version."""

import sys
from importlib import metadata

import mlflow
import pytest

from tests.support.client import (
    GATEWAY,
    Wire,
    isolated,  # noqa: F401
    named_by,
    warnings_in,
)

pytest.importorskip("langchain_core")

from agent_gateway_client import instrument, uninstrument
from agent_gateway_client._langchain_runs._methods import patches
from agent_gateway_client.langchain import GatewayCallbackHandler
from tests.support.langchain import http_model, parents

VERSION = f"langchain-core {metadata.version('langchain-core')}"


@pytest.mark.usefixtures("guards_hold", "isolated")
@pytest.mark.parametrize("path", list(patches._replacements))
async def test_a_method_that_has_moved(path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Sync and async runs are answered, with or without the parent; a warning has the path and the version."""
    # Names of classes and functions that LangChain lacks.
    moved = f"{path.rstrip('?')}_moved{'?' * path.endswith('?')}"
    replacements = {moved if key == path else key: replace for key, replace in patches._replacements.items()}
    monkeypatch.setattr(patches, "_replacements", replacements)
    monkeypatch.setattr(patches, "_patches", {})
    wire = Wire()
    with GatewayCallbackHandler(GATEWAY) as handler, mlflow.start_span("agent") as span:
        assert http_model(wire).invoke("a", {"callbacks": [handler]}).text
        assert (await http_model(wire).ainvoke("b", {"callbacks": [handler]})).text
    assert all(sent in ([], [named_by(span)]) for sent in parents(wire).values())
    warnings = warnings_in(caplog)
    # A name that some versions lack causes no warning.
    assert len(warnings) == (0 if path.endswith("?") else 1)
    assert all(moved in warning and VERSION in warning for warning in warnings)


@pytest.mark.usefixtures("guards_hold", "isolated")
def test_instrument_without_the_methods(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """If the patches cannot be imported, instrument() works, and one warning says what is lost."""
    monkeypatch.setitem(sys.modules, "agent_gateway_client._langchain_runs._methods", None)
    wire = Wire()
    try:
        with mlflow.start_span("agent") as span:
            instrument(GATEWAY)
            assert http_model(wire).invoke("a").text
    finally:
        monkeypatch.undo()
        uninstrument()
    assert parents(wire) == {"a": [named_by(span)]}
    (warning,) = warnings_in(caplog)
    assert "Could not follow LangChain's runs" in warning
    assert VERSION in warning
