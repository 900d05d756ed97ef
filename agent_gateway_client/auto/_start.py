"""Instruments a program before it starts."""

import json
import os
import sys
from collections.abc import Callable, Collection
from contextvars import ContextVar
from typing import Any

from agent_gateway_client._after_import import AfterImport
from agent_gateway_client._log import logger
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways

RECORD_VARIABLE = "AGENT_GATEWAY_RECORD"
"""The file to which a program under ``agent-gateway doctor -- COMMAND`` writes a line per request."""

_HTTP = ("httpx", "httpx2", "aiohttp", "urllib3", "requests", "websockets")

_watcher: AfterImport | None = None
_undo: list[Callable[[], None]] = []


def start() -> None:
    """Instrument the libraries that the program imports, for the gateways in ``AGENT_GATEWAY_URLS``. Never raises.

    All HTTP libraries are instrumented when the first of them is imported, LiteLLM and LangChain when they are
    imported. Idempotent.
    """
    global _watcher
    if _watcher is not None:
        return
    try:
        gateways = Gateways.from_environment()
    except ConfigurationError as error:
        logger.warning("Nothing is instrumented: %s", error)
        return
    if gateways:
        actions = {**dict.fromkeys(_HTTP, _http), "litellm": _litellm, "langchain_core": _langchain}
        _watcher = AfterImport({name: _guarded(name, action) for name, action in actions.items()})


def stop() -> None:
    """Undo :func:`start` as far as possible."""
    global _watcher
    if _watcher is not None:
        _watcher.stop()
        _watcher = None
    while _undo:
        _undo.pop()()


class AgentGatewayInstrumentor:
    """The instrumentor for ``opentelemetry-instrument``; calls :func:`start`."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return an empty list: no package is required."""
        return []

    def instrument(self, **options: Any) -> None:
        """Instrument the libraries that the program imports; does nothing without ``AGENT_GATEWAY_URLS``."""
        start()

    def uninstrument(self, **options: Any) -> None:
        """Undo :meth:`instrument`."""
        stop()


def _guarded(name: str, action: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            action()
        except Exception as error:  # the program must start with any version of a library
            logger.warning("%s is not instrumented (%s: %s)", name, type(error).__name__, error)

    return run


def _http() -> None:
    from agent_gateway_client.http import instrument
    from agent_gateway_client.http._process_wide import Instrumentation, renew

    if any(undo.__name__ == "uninstrument" for undo in _undo):
        # requests imports urllib3, whose import called this before requests could be patched.
        renew()
        return
    if path := os.environ.get(RECORD_VARIABLE):
        _record(path)
        _undo.append(Instrumentation(NO_GATEWAYS).uninstrument)
    else:
        _undo.append(instrument().uninstrument)


def _litellm() -> None:
    from agent_gateway_client.litellm import LiteLLMInstrumentation

    handle = LiteLLMInstrumentation(NO_GATEWAYS if _is_recorded() else Gateways.from_environment())
    _undo.append(lambda: handle.uninstrument())


def _langchain() -> None:
    if _is_recorded():
        return  # Runs are followed as instrument() follows them.
    from langchain_core.tracers.context import register_configure_hook

    from agent_gateway_client.langchain import GatewayCallbackHandler

    handler = GatewayCallbackHandler()
    # LangChain's API to add a handler to every run.
    hooked: ContextVar[Any] = ContextVar("agent_gateway_client.handler", default=handler)
    register_configure_hook(hooked, inheritable=True)
    _undo.append(lambda: handler.close())


def _is_recorded() -> bool:
    return RECORD_VARIABLE in os.environ


def _record(path: str) -> None:
    """Record each request. Send the same as ``agent-gateway run``, but mark what the program would not send by itself.

    The gateways of the environment are kept apart from those that the program configures.
    """
    from agent_gateway_client.http import _notes

    def write(note: _notes.Note) -> None:
        context = note.context
        line = {
            "method": note.method,
            "url": note.url,
            "outcome": note.outcome,
            "reason": note.reason,
            "trace_id": f"{context.trace_id:032x}" if context else None,
            "span_id": f"{context.span_id:016x}" if context else None,
            "traceparent": context.traceparent if context else note.kept,
            "pid": os.getpid(),
            "near_miss": note.near_miss,
            "is_assumed": note.is_assumed,
            "uses_client": _uses_client(),
        }
        # A single append, because child processes write to the file too.
        with open(path, "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")

    _notes.recorder = write
    _notes.assumed = Gateways.from_environment()


def _uses_client() -> bool:
    """Return whether the program itself has used a public name of this package, which is loaded on first use."""
    package = vars(sys.modules["agent_gateway_client"])
    return any(name in package for name in package["_HOME"])
