"""Checks one link after the other, up to the first broken one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import mlflow
from mlflow.entities import Trace

from agent_gateway_client.active_span import current_trace_context
from agent_gateway_client.doctor.checks import Check, Settings
from agent_gateway_client.doctor.configuration import check_configuration
from agent_gateway_client.doctor.gateway import Answer, Companion, Gateway, Status
from agent_gateway_client.doctor.links import (
    Probe,
    check_companion,
    check_exporter,
    check_gateway,
    check_header,
    check_mirror,
    check_mlflows_own,
    check_parent,
    check_span,
    check_status,
    check_tokens,
    check_trace,
    own_span,
    tokens,
)
from agent_gateway_client.doctor.relay import Counts, Relay, check_sending, check_spans
from agent_gateway_client.doctor.store import Store, mirrors_in

PROBE_SPAN = "agent-gateway doctor"

_ASK_EVERY_S = 3.0
_STATUS_EVERY_S = 1.0
_LASTING_TROUBLES = 3


class _Examination:
    def __init__(self, settings: Settings, on_check: Callable[[Check], None]) -> None:
        self.checks: list[Check] = []
        self._settings = settings
        self._on_check = on_check
        self._relay = Relay(settings.relay) if settings.relay else None
        self._before: Counts | None = None

    def run(self) -> None:
        settings = self._settings
        gateway, store = Gateway(settings), Store(settings)
        if not (
            self._check("configuration", lambda: check_configuration(settings))
            and self._check("gateway", lambda: check_gateway(gateway.find_route(), gateway.status()))
            and self._check("store", store.open)
        ):
            return
        # Finds the most frequent problem without a model call.
        status = self._lasting(gateway)
        if status and status.is_stuck and not self._check("exporter", lambda: check_status(status)):
            return
        if not self._relay_takes_spans():
            return
        probe = self._probe(gateway)
        if probe is None:
            return
        # The mirror may arrive before the caller's own span.
        trace = store.wait_for(probe.trace_id, lambda t: own_span(t, probe) is not None, settings.patience_s)
        if not self._check("trace", lambda: check_trace(trace, probe, store.experiment_id)):
            return
        companion = probe.answer.companion
        if companion and not (
            self._check("companion", lambda: check_companion(companion, None, gateway.kind))
            and self._check("header", lambda: check_header(companion, probe.answer.sent))
        ):
            return
        trace, latest = self._wait_for_mirror(gateway, store, probe)
        seconds = time.monotonic() - probe.ended
        # The probe does not send the workspace header.
        workspace = store.workspace if gateway.kind == "mlflow" else None
        if self._relay:
            if not self._check("relay_spans", lambda: self._check_spans(trace)):
                return
        elif not companion and not self._check("companion", lambda: check_companion(None, trace, gateway.kind)):
            if gateway.kind == "mlflow":
                self._check("mlflow_mirror", lambda: check_mlflows_own(trace))
            return
        if not (
            (self._relay or self._check("exporter", lambda: check_exporter(latest, trace)))
            and self._check("mirror", lambda: check_mirror(trace, latest, settings.tracking_uri, seconds, workspace))
            and self._check("parent", lambda: check_parent(trace, probe))
        ):
            return
        if probe.answer.total_tokens is not None:
            trace = store.wait_for(probe.trace_id, lambda t: tokens(t) is not None, settings.patience_s) or trace
        self._check("tokens", lambda: check_tokens(probe.answer.total_tokens, tokens(trace)))

    def _wait_for_mirror(self, gateway: Gateway, store: Store, probe: Probe) -> tuple[Trace | None, Companion | None]:
        """Wait until the mirror arrives, the companion repeatedly reports an export problem, or patience ends.

        Returns:
            The trace, and the companion's latest answer.
        """
        deadline = time.monotonic() + self._settings.patience_s
        companion = probe.answer.companion
        # Without a companion that answers, there is nothing to ask in between.
        slice_s = _ASK_EVERY_S if companion else self._settings.patience_s
        troubles = 0
        while True:
            left = deadline - time.monotonic()
            trace = store.wait_for(probe.trace_id, lambda t: bool(mirrors_in(t)), min(slice_s, left))
            if mirrors_in(trace) or companion is None:
                return trace, companion
            companion = gateway.ask() or companion
            troubles = troubles + 1 if companion.problem else 0
            if troubles >= _LASTING_TROUBLES or time.monotonic() >= deadline:
                return trace, companion

    def _relay_takes_spans(self) -> bool:
        """Check the relay, if there is one, and record its counts before the probe."""
        relay = self._relay
        if relay is None:
            return True
        if not (
            self._check("relay", relay.check_answers)
            and self._check("relay_token", relay.check_token)
            and self._check("relay_mirrors", lambda: check_sending(relay.counts()))
        ):
            return False
        self._before = relay.counts()
        return True

    def _check_spans(self, trace: Trace | None) -> str:
        assert self._relay
        assert self._before
        new = self._relay.counts().since(self._before)
        return check_spans(new, trace, self._relay.url, self._settings.tracking_uri)

    def _lasting(self, gateway: Gateway) -> Status | None:
        """Return the companion's status. If it is stuck, ask again to see whether that lasts."""
        status = gateway.status()
        for _ in range(_LASTING_TROUBLES):
            if status is None or not status.is_stuck:
                break
            time.sleep(_STATUS_EVERY_S)
            status = gateway.status()
        return status

    def _probe(self, gateway: Gateway) -> Probe | None:
        """Send the probe call in a new span; ``None`` if it could not be sent or failed."""
        with mlflow.start_span(PROBE_SPAN) as span:
            context = current_trace_context()
            if not self._check("span", lambda: check_span(context)):
                return None
            answer: list[Answer] = []

            def call() -> str:
                answer.append(gateway.probe())
                return f"{self._settings.model!r} answers."

            if not self._check("endpoint", call):
                return None
        ended = time.monotonic()
        mlflow.flush_trace_async_logging()
        return Probe(span.trace_id, span.span_id, answer[0], ended)

    def _check(self, name: str, examine: Callable[[], str]) -> bool:
        check = Check.of(name, examine)
        self.checks.append(check)
        self._on_check(check)
        return check.ok


def examine(settings: Settings, on_check: Callable[[Check], None] = lambda check: None) -> list[Check]:
    """Send one probe call, and check each link between the agent's span and the gateway's mirror.

    The call is not sent if the companion's status reports mirrors that wait and cannot be sent.

    The names of the checks, in order: ``configuration``, ``gateway``, ``store``, ``span``, ``endpoint``, ``trace``,
    ``companion`` (if it is missing from MLflow's gateway, followed by ``mlflow_mirror``), ``header``, ``exporter``,
    ``mirror``, ``parent``, ``tokens``. With a relay, ``relay``, ``relay_token`` and ``relay_mirrors`` come before
    ``span``, and ``relay_spans`` replaces ``exporter`` and the check of a missing companion. Links after a broken one
    are not checked.

    Afterwards the process traces into the MLflow of the settings.

    Args:
        settings: The settings.
        on_check: Called with each check as soon as it has run.

    Returns:
        The checks that have run. All links work if the last one is ``tokens`` and it is ``ok``.
    """
    logger = logging.getLogger("mlflow")
    level = logger.level
    # MLflow logs each attempt to read a trace that has not arrived yet.
    logger.setLevel(logging.CRITICAL)
    try:
        examination = _Examination(settings, on_check)
        examination.run()
        return examination.checks
    finally:
        logger.setLevel(level)
