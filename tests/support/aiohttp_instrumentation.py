"""What OpenTelemetry's instrumentation of aiohttp does to a request, for environments without that package.

Like ``opentelemetry-instrumentation-aiohttp-client``, it uses a trace configuration: it starts a span before the
request is made, makes it current, writes its context into the headers from which aiohttp makes the request of every
hop, and ends the span with the last hop.
"""

from types import SimpleNamespace
from typing import Any

import aiohttp
from opentelemetry import context, propagate, trace
from opentelemetry.trace import SpanKind, TracerProvider

SCOPE = "opentelemetry.instrumentation.aiohttp_client"


class AioHttpClientInstrumentor:
    """The part of the package's interface that the tests use."""

    _original: Any = None

    def instrument(self, tracer_provider: TracerProvider) -> None:
        tracer = tracer_provider.get_tracer(SCOPE)
        original = AioHttpClientInstrumentor._original = aiohttp.ClientSession.__init__

        async def begin(session: Any, now: SimpleNamespace, params: aiohttp.TraceRequestStartParams) -> None:
            now.span = tracer.start_span(params.method, kind=SpanKind.CLIENT)
            now.token = context.attach(trace.set_span_in_context(now.span))
            propagate.inject(params.headers)

        async def end(session: Any, now: SimpleNamespace, params: Any) -> None:
            now.span.end()
            context.detach(now.token)

        def init(session: aiohttp.ClientSession, *args: Any, **kwargs: Any) -> None:
            config = aiohttp.TraceConfig()
            config.on_request_start.append(begin)
            config.on_request_end.append(end)
            config.on_request_exception.append(end)
            original(session, *args, trace_configs=[config], **kwargs)

        aiohttp.ClientSession.__init__ = init  # type: ignore[method-assign]

    def uninstrument(self) -> None:
        aiohttp.ClientSession.__init__ = AioHttpClientInstrumentor._original  # type: ignore[method-assign]
