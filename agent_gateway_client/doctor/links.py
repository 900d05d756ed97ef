"""Checks each link. Each function returns the finding, or raises ``Broken``."""

from __future__ import annotations

import sys
from typing import NamedTuple

from mlflow.entities import Span, Trace
from mlflow.tracing.constant import TokenUsageKey

from agent_gateway_client.doctor.checks import Broken
from agent_gateway_client.doctor.gateway import ADD_COMPANION, Answer, Companion, Status
from agent_gateway_client.doctor.store import mirrors_in
from agent_gateway_client.traces.joined import fault_of
from agent_gateway_client.w3c import TraceContext

_EXPORT_FIXES = {
    "HTTP 401": "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for the "
    "{sender}.",
    "be read": "Give the {sender}'s user read access to the experiments that agents trace into.",
    "HTTP 403": "Give the {sender}'s user write access to the experiments that agents trace into.",
    "HTTP 404": "Check the path of the {sender}'s MLFLOW_TRACKING_URI or OTEL_EXPORTER_OTLP_ENDPOINT, and that its "
    "MLflow is 3.15 or newer.",
    "NotImplementedError": "Upgrade the MLflow server that the {sender} writes to; it needs 3.15 or newer.",
    "HTTP 501": "Use a database as the backend store of the MLflow server that the {sender} writes to.",
    "keeps no spans": "Use a database as the backend store of the MLflow server that the {sender} writes to, and "
    "MLflow 3.15 or newer.",
}
"""Fixes for an exporter's problem, by a part of its text. The sender is the gateway or the relay."""


class Probe(NamedTuple):
    """The probe call and its parent span."""

    trace_id: str
    span_id: str
    answer: Answer
    ended: float


def check_span(context: TraceContext | None) -> str:
    """Check that a span is active and sampled."""
    if context is None:
        raise Broken(
            "MLflow creates no spans here.", "Do not call mlflow.tracing.disable(), and update mlflow-tracing."
        )
    if not context.sampled:
        raise Broken(
            "The span is not sampled, so neither MLflow nor a gateway records it.",
            "Unset MLFLOW_TRACE_SAMPLING_RATIO, or set it to 1.",
        )
    return f"A span is active, and its context is {context.traceparent}."


def own_span(trace: Trace, probe: Probe) -> Span | None:
    """Return the probe's own span, or ``None``."""
    return next((span for span in trace.data.spans if span.span_id == probe.span_id), None)


def check_trace(trace: Trace | None, probe: Probe, experiment_id: str) -> str:
    """Check that the agent's own span has arrived."""
    if trace is None or own_span(trace, probe) is None:
        raise Broken(
            f"The agent's own span of the trace {probe.trace_id} did not arrive.",
            f"Give this user write access to the experiment {experiment_id}; MLflow's log says why it was refused.",
        )
    return f"The agent's span is in the trace {probe.trace_id}. {flush_advice(sys.version_info[:3])}"


def flush_advice(python: tuple[int, ...]) -> str:
    """Return advice for scripts on sending their last spans to the server, as the doctor has just done.

    Args:
        python: Python's version.
    """
    advice = "The doctor sent it at once; a script has to end with mlflow.flush_trace_async_logging()"
    if (3, 12, 0) <= python < (3, 12, 3):
        # https://github.com/python/cpython/issues/113964; MLflow starts the thread that sends in an exit handler.
        version = ".".join(map(str, python))
        return f"{advice}: without it Python {version}, which starts no thread at exit, loses the spans."
    return f"{advice}, or its last spans can be lost."


def is_ours(mirror: Span) -> bool:
    """Return whether a mirror is the companion's."""
    # MLflow's own mirror refers to the gateway's trace only in this attribute; ours also has a link.
    return bool(mirror.links) or mirror.get_attribute("mlflow.gateway.linkedTraceId") is None


def check_companion(companion: Companion | None, trace: Trace | None, kind: str) -> str:
    """Check that the gateway has a companion."""
    if companion is not None:
        return f"agent-gateway-client {companion.version} is in the gateway."
    if any(is_ours(mirror) for mirror in mirrors_in(trace)):
        return "The companion does not answer through this gateway, but its mirror arrived."
    raise Broken("The gateway has no companion: none answered, and no mirror arrived.", ADD_COMPANION[kind])


def check_mlflows_own(trace: Trace | None) -> str:
    """Check that MLflow's own mirror, for a gateway without a companion, has arrived."""
    if mirrors_in(trace):
        return "MLflow's own mirror arrived. It lasts less than a millisecond, and its status is OK when a call fails."
    raise Broken(
        "MLflow's own mirror was lost, as it is by default: its exporter looks for the caller's trace too late.",
        "Install the companion, which replaces that mirror. (Or set MLFLOW_USE_BATCH_SPAN_PROCESSOR=false for the "
        "server.)",
    )


def check_header(companion: Companion, sent: TraceContext | None) -> str:
    """Check that the companion received the trace context unchanged."""
    received = companion.received
    if sent is None:
        raise Broken("The request was sent without a traceparent.", "Update agent-gateway-client and httpx.")
    if received is None:
        count = companion.traceparents
        seen = "no traceparent" if count == 0 else f"{count} traceparent headers, which together are invalid"
        raise Broken(
            f"The request was sent with {sent.traceparent} and reached the companion with {seen}.",
            "Something between the agent and the gateway removes the header or adds another one: configure the proxy "
            "or load balancer to forward traceparent and tracestate unchanged.",
        )
    if (received.trace_id, received.span_id) != (sent.trace_id, sent.span_id):
        raise Broken(
            f"The request was sent with {sent.traceparent} and reached the companion with {received.traceparent}.",
            "Something between the agent and the gateway creates its own spans and replaces the header: disable "
            "tracing there for the gateway, or configure it to forward traceparent unchanged.",
        )
    if not received.sampled:
        raise Broken(
            f"The trace reached the companion as not sampled ({received.traceparent}).",
            "Configure the proxy in between to forward the traceparent's flags unchanged.",
        )
    return "The companion received the traceparent as it was sent."


def check_exporter(companion: Companion | None, trace: Trace | None) -> str:
    """Check that the companion can send its mirrors."""
    if mirrors_in(trace):
        return "The companion's mirrors are stored."
    if companion is None or companion.problem is None:
        return "The companion reports no problem with sending mirrors."
    raise Broken(f"The companion cannot send its mirrors: {companion.problem}.", export_fix(companion.problem))


def check_gateway(seen: str, status: Status | None) -> str:
    """Return the finding about the gateway, and its companion's version and destination if known."""
    if status is None:
        return seen
    return f"{seen} Its companion, agent-gateway-client {status.version}, sends mirrors to {status.destination}."


def check_status(status: Status) -> str:
    """Check that the companion can send the mirrors that wait."""
    if status.problem is None or not status.waiting:
        return "The companion reports no problem with sending mirrors."
    raise Broken(
        f"The companion cannot send its mirrors to {status.destination}: {status.problem}. Calls that wait: "
        f"{status.waiting}. No probe call was sent.",
        export_fix(status.problem),
    )


def export_fix(problem: str, sender: str = "gateway") -> str:
    """Return the fix for an exporter's problem.

    Args:
        problem: The problem's text.
        sender: Where the exporter runs, ``gateway`` or ``relay``.
    """
    fixes = (fix for part, fix in _EXPORT_FIXES.items() if part in problem)
    default = "Check that the {sender} can reach its MLFLOW_TRACKING_URI (or OTEL_EXPORTER_OTLP_ENDPOINT)."
    return next(fixes, default).format(sender=sender)


def check_mirror(
    trace: Trace | None, companion: Companion | None, tracking_uri: str, seconds: float, workspace: str | None = None
) -> str:
    """Check that the mirror has arrived.

    Args:
        trace: The probe's trace.
        companion: The companion's latest answer.
        tracking_uri: The MLflow server of the trace.
        seconds: Seconds since the call.
        workspace: The trace's workspace, if the gateway serves the probe in a different one.
    """
    mirrors = mirrors_in(trace)
    if any(_came_by_otlp(mirror) for mirror in mirrors):
        raise Broken(
            "The mirror reached MLflow over OTLP, which stores what arrives first. From MLflow 3.18 on, if a mirror "
            "arrives before the agent's trace and in another experiment, MLflow refuses that trace.",
            "Unset AGENT_GATEWAY_EXPORTER at the gateway, or make the collector send to `agent-gateway relay` instead.",
        )
    if mirrors:
        return f"The mirror arrived within {seconds:.1f} s of the call."
    if companion and companion.exporter == "otel":
        raise Broken(
            f"The companion sends its mirrors over OTLP, and they do not arrive at {tracking_uri}.",
            "Look for the trace at the gateway's OTEL_EXPORTER_OTLP_ENDPOINT, or unset AGENT_GATEWAY_EXPORTER at the "
            "gateway to send mirrors to MLflow.",
        )
    if workspace is not None:
        raise Broken(
            f"The trace is in the workspace {workspace!r}, and the gateway served the probe in its default workspace, "
            "where the companion does not find the trace.",
            f"Send the header X-MLFLOW-WORKSPACE: {workspace} with the agent's requests, or unset MLFLOW_WORKSPACE for "
            "the agent.",
        )
    raise Broken(
        f"No mirror arrived at {tracking_uri}, and the companion reports no problem: it writes to another MLflow "
        "server or to another workspace.",
        "Set MLFLOW_TRACKING_URI to the same server for the gateway and the agent, and MLFLOW_WORKSPACE to the same "
        "workspace. (An MLflow gateway writes to its own store, in the workspace of the request.)",
    )


def _came_by_otlp(mirror: Span) -> bool:
    """Return whether a mirror has OpenTelemetry's attribute names. In MLflow, ours have MLflow's attribute names."""
    return any(str(name).startswith("agent_gateway.endpoint.") for name in mirror.attributes)


def check_parent(trace: Trace | None, probe: Probe) -> str:
    """Check that there is one mirror, and that its parent is the span of the call."""
    mirrors = mirrors_in(trace)
    if len(mirrors) > 1:
        raise Broken(
            f"The call has {len(mirrors)} mirrors, so its tokens are counted {len(mirrors)} times.",
            "Install the companion once: one middleware, and in only one of several gateways in a row.",
        )
    # The gateway's clock may differ from this one.
    fault = fault_of(trace.data.spans, mirrors[0], probe.span_id, is_within=False) if trace else None
    if fault is not None:
        raise Broken(
            f"{fault[0].upper()}{fault[1:]}.",
            "Something between the agent and the gateway replaces the traceparent; configure it to forward it "
            "unchanged.",
        )
    return "The mirror is below the span that made the call."


def tokens(trace: Trace | None) -> int | None:
    """Return the trace's total tokens, or ``None``."""
    return (trace.info.token_usage or {}).get(TokenUsageKey.TOTAL_TOKENS) if trace else None


def check_tokens(reported: int | None, counted: int | None) -> str:
    """Check that the trace counts the tokens of the response once."""
    if reported is None:
        raise Broken(
            "The gateway's response has no token usage, so the trace has none either.",
            "Configure the gateway to return the provider's usage.",
        )
    if counted != reported:
        raise Broken(
            f"The response reports {reported} tokens, and the trace counts {counted or 'none'}.",
            "Record a call's tokens in one place only: see gateway_attempt() if the gateway records them itself, and "
            "autologging if a client's span has them too.",
        )
    return f"The trace counts the {reported} tokens that the response reports, once."
