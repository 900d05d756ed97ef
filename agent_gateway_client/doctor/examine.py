"""The examination: link after link, until one is broken."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import mlflow
from mlflow.entities import Span, Trace
from mlflow.tracing.constant import TokenUsageKey

from agent_gateway_client.doctor.checks import Broken, Check, Settings
from agent_gateway_client.doctor.configuration import check_configuration
from agent_gateway_client.doctor.gateway import ADD_COMPANION, Answer, Companion, Gateway
from agent_gateway_client.doctor.store import Store, mirrors_in
from agent_gateway_client.propagation import TraceContext, current_trace_context

PROBE_SPAN = "agent-gateway doctor"

_EXPORT_FIXES = {
    "HTTP 401": "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for the gateway.",
    "HTTP 403": "Let the gateway's user write to the experiment that AGENT_GATEWAY_EXPERIMENT_ID names (0 by default).",
    "HTTP 404": "Set AGENT_GATEWAY_EXPERIMENT_ID for the gateway to an experiment that is there, and check the path of "
    "its MLFLOW_TRACKING_URI or OTEL_EXPORTER_OTLP_ENDPOINT.",
    "RESOURCE_DOES_NOT_EXIST": "Set AGENT_GATEWAY_EXPERIMENT_ID for the gateway to an experiment that is there.",
    "NotImplementedError": "Upgrade the MLflow server that the gateway writes to; it needs 3.15 or newer.",
    "HTTP 501": "Give the MLflow server that the gateway writes to a database as its backend store.",
    "keeps no spans": "Give the MLflow server that the gateway writes to a database as its backend store, and 3.15 or "
    "newer.",
}
"""What to do about an exporter's problem, by a part of its name."""


class _Probe(NamedTuple):
    """The probe call and the span that it was sent in."""

    trace_id: str
    span_id: str
    answer: Answer
    ended: float


class _Examination:
    def __init__(self, settings: Settings, on_check: Callable[[Check], None]) -> None:
        self.checks: list[Check] = []
        self._settings = settings
        self._on_check = on_check

    def run(self) -> None:
        settings = self._settings
        gateway, store = Gateway(settings), Store(settings)
        if not (
            self._check("configuration", lambda: check_configuration(settings))
            and self._check("gateway", gateway.find_route)
            and self._check("store", store.open)
        ):
            return
        probe = self._probe(gateway)
        if probe is None:
            return
        # The mirror may be there before the caller's own span is.
        trace = store.wait_for(probe.trace_id, lambda t: _own_span(t, probe) is not None, settings.patience_s)
        if not self._check("trace", lambda: _check_trace(trace, probe, store)):
            return
        companion = probe.answer.companion
        if companion and not (
            self._check("companion", lambda: _check_companion(companion, None, gateway.kind))
            and self._check("header", lambda: _check_header(companion, probe.answer.sent))
        ):
            return
        trace = store.wait_for(probe.trace_id, lambda t: bool(mirrors_in(t)), settings.patience_s)
        seconds = time.monotonic() - probe.ended
        if not companion and not self._check("companion", lambda: _check_companion(None, trace, gateway.kind)):
            if gateway.kind == "mlflow":
                self._check("mlflow_mirror", lambda: _check_mlflows_own(trace))
            return
        if not (
            self._check("exporter", lambda: _check_exporter(gateway.ask() or companion, trace))
            and self._check("mirror", lambda: _check_mirror(trace, companion, settings.tracking_uri, seconds))
            and self._check("parent", lambda: _check_parent(trace, probe))
        ):
            return
        trace = store.wait_for(probe.trace_id, lambda t: _tokens(t) is not None, settings.patience_s) or trace
        self._check("tokens", lambda: _check_tokens(probe.answer.total_tokens, _tokens(trace)))

    def _probe(self, gateway: Gateway) -> _Probe | None:
        """Send the probe call in a span of its own; ``None`` where it was not sent or not answered."""
        with mlflow.start_span(PROBE_SPAN) as span:
            context = current_trace_context()
            if not self._check("span", lambda: _check_span(context)):
                return None
            answer: list[Answer] = []

            def call() -> str:
                answer.append(gateway.probe())
                return f"{self._settings.model!r} answers."

            if not self._check("endpoint", call):
                return None
        ended = time.monotonic()
        mlflow.flush_trace_async_logging()
        return _Probe(span.trace_id, span.span_id, answer[0], ended)

    def _check(self, name: str, examine: Callable[[], str]) -> bool:
        try:
            check = Check(name, True, examine())
        except Broken as broken:
            check = Check(name, False, broken.detail, broken.fix)
        self.checks.append(check)
        self._on_check(check)
        return check.ok


def examine(settings: Settings, on_check: Callable[[Check], None] = lambda check: None) -> list[Check]:
    """Send one probe call, and look at each link between the agent's span and the gateway's mirror of it.

    The names of the checks, in their order: ``configuration``, ``gateway``, ``store``, ``span``, ``endpoint``,
    ``trace``, ``companion`` (where it is missing from MLflow's gateway, then ``mlflow_mirror``), ``header``,
    ``exporter``, ``mirror``, ``parent``, ``tokens``. What comes after a broken link is not looked at.

    The process traces into the settings' MLflow afterwards.

    Args:
        settings: What is to be examined.
        on_check: Is told each check as soon as it is made.

    Returns:
        The checks that were made; all is well if the last one is ``tokens`` and it holds.
    """
    logger = logging.getLogger("mlflow")
    level = logger.level
    # MLflow logs that a trace is not there yet each time it is looked for.
    logger.setLevel(logging.CRITICAL)
    try:
        examination = _Examination(settings, on_check)
        examination.run()
        return examination.checks
    finally:
        logger.setLevel(level)


def _check_span(context: TraceContext | None) -> str:
    if context is None:
        raise Broken("MLflow makes no span here.", "Do not call mlflow.tracing.disable(), and update mlflow-tracing.")
    if not context.sampled:
        raise Broken(
            "The span is not sampled, so neither MLflow nor a gateway keeps anything of it.",
            "Unset MLFLOW_TRACE_SAMPLING_RATIO, or set it to 1.",
        )
    return f"A span is active, and its context is {context.traceparent}."


def _own_span(trace: Trace, probe: _Probe) -> Span | None:
    return next((span for span in trace.data.spans if span.span_id == probe.span_id), None)


def _check_trace(trace: Trace | None, probe: _Probe, store: Store) -> str:
    if trace is None or _own_span(trace, probe) is None:
        raise Broken(
            f"The agent's own span of the trace {probe.trace_id} did not arrive.",
            f"Let this user write to the experiment {store.experiment_id}; MLflow's log says why it was refused.",
        )
    return f"The agent's span is in the trace {probe.trace_id}."


def _is_ours(mirror: Span) -> bool:
    # MLflow's own mirror does not know it.
    return mirror.get_attribute("http.response.status_code") is not None


def _check_companion(companion: Companion | None, trace: Trace | None, kind: str) -> str:
    if companion is not None:
        return f"agent-gateway-client {companion.version} is in the gateway."
    if any(_is_ours(mirror) for mirror in mirrors_in(trace)):
        return "It cannot be asked through this gateway, but its mirror arrived, so it is there."
    raise Broken("The gateway has no companion: it did not answer, and no mirror of it arrived.", ADD_COMPANION[kind])


def _check_mlflows_own(trace: Trace | None) -> str:
    if mirrors_in(trace):
        return "MLflow's own mirror arrived. It lasts less than a millisecond, and its status is OK when a call fails."
    raise Broken(
        "MLflow's own mirror was lost, as it is by default: its exporter looks for the caller's trace too late.",
        "The companion makes mirrors of its own. (Without it: MLFLOW_USE_BATCH_SPAN_PROCESSOR=false for the server.)",
    )


def _check_header(companion: Companion, sent: TraceContext | None) -> str:
    received = companion.received
    if sent is None:
        raise Broken("The request went out without a traceparent.", "Update agent-gateway-client and httpx.")
    if received is None:
        count = companion.traceparents
        seen = "no traceparent" if count == 0 else f"{count} traceparent headers, which together are invalid"
        raise Broken(
            f"The request went out with {sent.traceparent}, and reached the companion with {seen}.",
            "Something between agent and gateway takes the header off or adds to it: have the proxy or load balancer "
            "pass traceparent and tracestate on as they are.",
        )
    if (received.trace_id, received.span_id) != (sent.trace_id, sent.span_id):
        raise Broken(
            f"The request went out with {sent.traceparent}, and reached the companion with {received.traceparent}.",
            "Something between agent and gateway traces by itself and replaces the header: switch tracing off there "
            "for the gateway, or have it pass traceparent on.",
        )
    if not received.sampled:
        raise Broken(
            f"The trace reached the companion as not sampled ({received.traceparent}).",
            "Have the proxy in between leave the traceparent's flags alone.",
        )
    return "The companion received the traceparent as it was sent."


def _check_exporter(companion: Companion | None, trace: Trace | None) -> str:
    if mirrors_in(trace):
        return "The companion's mirrors are stored."
    if companion is None or companion.problem is None:
        return "The companion knows of no trouble with sending mirrors."
    fixes = (fix for part, fix in _EXPORT_FIXES.items() if part in companion.problem)
    raise Broken(
        f"The companion cannot send its mirrors: {companion.problem}.",
        next(
            fixes, "See that MLFLOW_TRACKING_URI (or OTEL_EXPORTER_OTLP_ENDPOINT) of the gateway can be reached there."
        ),
    )


def _check_mirror(trace: Trace | None, companion: Companion | None, tracking_uri: str, seconds: float) -> str:
    if mirrors_in(trace):
        return f"The mirror was there {seconds:.1f} s after the call."
    if companion and companion.exporter == "otel":
        raise Broken(
            f"The companion sends its mirrors by OTLP, and they do not arrive at {tracking_uri}.",
            "Look for the trace where OTEL_EXPORTER_OTLP_ENDPOINT of the gateway points to, or unset "
            "AGENT_GATEWAY_EXPORTER there to send mirrors to MLflow.",
        )
    raise Broken(
        f"No mirror arrived at {tracking_uri}, and the companion knows of no trouble: it writes to another MLflow.",
        "Let MLFLOW_TRACKING_URI of the gateway and of the agent name the same server. (An MLflow gateway writes to "
        "its own store.)",
    )


def _check_parent(trace: Trace | None, probe: _Probe) -> str:
    mirrors = mirrors_in(trace)
    if len(mirrors) > 1:
        raise Broken(
            f"The one call has {len(mirrors)} mirrors, and its tokens count as often.",
            "Install the companion once: not as two middlewares, and of several gateways in a row, in one.",
        )
    if mirrors[0].parent_id != probe.span_id:
        raise Broken(
            f"The mirror is below the span {mirrors[0].parent_id}, not below {probe.span_id}, which made the call.",
            "Something between agent and gateway replaces the traceparent; have it pass that on.",
        )
    return "The mirror is below the span that made the call."


def _tokens(trace: Trace | None) -> int | None:
    return (trace.info.token_usage or {}).get(TokenUsageKey.TOTAL_TOKENS) if trace else None


def _check_tokens(reported: int | None, counted: int | None) -> str:
    if reported is None:
        raise Broken(
            "The gateway's response says nothing of tokens, so the trace cannot.",
            "Have the gateway pass the provider's usage on.",
        )
    if counted != reported:
        raise Broken(
            f"The response reports {reported} tokens, and the trace counts {counted or 'none'}.",
            "Let only one place say the tokens of a call: see gateway_attempt() if the gateway sets them itself, and "
            "autologging if a client's span has them too.",
        )
    return f"The trace counts the {reported} tokens that the response reports, once."
