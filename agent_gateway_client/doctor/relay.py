"""Checks a relay: whether it accepts spans, and whether the calls in them are mirrored."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
from mlflow.entities import Trace

from agent_gateway_client.doctor.checks import Broken, Check, excerpt
from agent_gateway_client.doctor.links import export_fix
from agent_gateway_client.doctor.store import mirrors_in
from agent_gateway_client.relay.answers import PROTOBUF
from agent_gateway_client.relay.app import HEALTH_PATH, TRACES_PATH
from agent_gateway_client.relay.serve import TOKEN_VARIABLE, token_from_environment
from agent_gateway_client.server.export.counts import WHY, Reason
from agent_gateway_client.server.observed.pages import STATUS_PATH

_TIMEOUT_S = 10.0
_POLL_S = 0.5
_TO_RELAY = "OTEL_EXPORTER_OTLP_ENDPOINT={url} and OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
_WITH_TOKEN = "OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20<token>'"
_SAME_MLFLOW = (
    "Make the agents trace into the MLflow server that the relay writes to, and exit normally: an agent sends its "
    "trace some 5 s after its last span, and a script that is killed never does."
)


class Counts(NamedTuple):
    """The relay's counts since it started.

    Attributes:
        destination: The destination of its mirrors.
        problem: Why it could not send its last mirrors, or ``None``.
        requests: Requests that it accepted.
        without_token: Requests that it refused because their token was missing or wrong.
        recognised: Spans that are model calls.
        unrecognised: Other spans; a gateway sends several for each call.
        orphaned: Attempts whose root never arrived.
        given_up: Spans that it dropped because it held too many.
        mirrored: Calls that it found and passed to its exporter.
        sent: Calls whose mirrors were stored.
        waiting: Calls whose mirrors are still to be stored.
        dropped: Calls whose mirrors will never be stored, by reason.
    """

    destination: str
    problem: str | None
    requests: int
    without_token: int
    recognised: int
    unrecognised: int
    orphaned: int
    given_up: int
    mirrored: int
    sent: int
    waiting: int
    dropped: dict[str, int]

    def since(self, before: Counts) -> Counts:
        """Return the counts since an earlier time. ``waiting`` and ``problem`` keep their current values."""
        changed = {name: getattr(self, name) - getattr(before, name) for name in _COUNTERS}
        dropped = {reason: count - before.dropped.get(reason, 0) for reason, count in self.dropped.items()}
        return self._replace(**changed, dropped={reason: count for reason, count in dropped.items() if count > 0})


_COUNTERS = (
    "requests", "without_token", "recognised", "unrecognised", "orphaned", "given_up", "mirrored", "sent",
)  # fmt: skip


class Relay:
    """The relay to check.

    Args:
        url: The URL for gateways' spans, with or without ``/v1/traces``.

    Raises:
        ConfigurationError: The token in this environment is not valid.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/").removesuffix(TRACES_PATH).rstrip("/")
        self._token = token_from_environment()

    def check_answers(self) -> str:
        """Check that the URL is that of a relay."""
        response = self._ask("GET", HEALTH_PATH)
        try:
            status = response.json()
            held = int(status["spans_held"])
        except (KeyError, TypeError, ValueError):
            raise Broken(
                f"{self.url} answers, but is not a relay ({response.status_code} to {HEALTH_PATH}).",
                "Give the URL of `agent-gateway relay`, not that of a collector, of the gateway or of MLflow.",
            ) from None
        if response.status_code == 503:
            raise Broken(
                f"The relay at {self.url} is stopping.", "Start it again; gateways keep their spans until then."
            )
        return f"The relay answers at {self.url}, and holds {held} spans."

    def check_token(self) -> str:
        """Check that the relay accepts an exporter's request with the token of this environment."""
        response = self._ask("POST", TRACES_PATH, content=b"", headers={"content-type": PROTOBUF})
        if response.status_code == 401:
            raise Broken(
                f"The relay rejects the token in {TOKEN_VARIABLE}."
                if self._token
                else f"The relay requires a token, and {TOKEN_VARIABLE} is not set here.",
                f"Set {TOKEN_VARIABLE} here to the relay's value, and at each gateway {_WITH_TOKEN}.",
            )
        if response.status_code == 429:
            raise Broken(
                "The relay accepts no more spans now: it holds too many, or too many mirrors are waiting (429).",
                "Check that its MLflow or OTLP endpoint keeps up, add relays, or raise --max-spans.",
            )
        if response.status_code != 200:
            raise Broken(
                f"The relay answers {response.status_code} to an empty request: {excerpt(response.text)}",
                f"Check the proxies between here and the relay: they must forward POST {TRACES_PATH} unchanged.",
            )
        return "The relay accepts spans with this token." if self._token else "The relay accepts spans without a token."

    def counts(self) -> Counts:
        """Return the relay's counts.

        Raises:
            Broken: The relay does not report its counts.
        """
        response = self._ask("GET", STATUS_PATH)
        try:
            return _counts(response.json())
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Broken(
                f"The relay does not report its status ({response.status_code} to {STATUS_PATH}).",
                "Upgrade agent-gateway-client where the relay runs.",
            ) from None

    def lasting_counts(self, patience_s: float) -> Counts:
        """Return the counts once no call waits, another one was sent, or patience has ended."""
        before = counts = self.counts()
        deadline = time.monotonic() + patience_s
        while counts.waiting and counts.sent == before.sent and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            counts = self.counts()
        return counts

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {**more.pop("headers", {}), **({"authorization": f"Bearer {self._token}"} if self._token else {})}
        try:
            return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=_TIMEOUT_S, **more)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Broken(
                f"No relay answers at {self.url.rpartition('@')[2]} ({type(error).__name__}: {excerpt(str(error))}).",
                "Start `agent-gateway relay`; check the scheme, the host and the port, and proxies in between "
                "(HTTP_PROXY, NO_PROXY).",
            ) from error


def check_received(counts: Counts, url: str) -> str:
    """Check that the spans received so far include model calls."""
    seen = f"No span has arrived yet. A gateway sends its spans here with {_TO_RELAY.format(url=url)}."
    if counts.recognised or counts.unrecognised:
        _check_recognised(counts)
        seen = f"{counts.recognised} spans are model calls, {counts.unrecognised} are others of the gateways."
    more = [
        f"{counts.orphaned} attempts arrived without the span around them: if several relays share an address, make "
        "the collector route by trace id."
        if counts.orphaned
        else "",
        f"{counts.given_up} spans were dropped because too many were held: raise --max-spans."
        if counts.given_up
        else "",
        f"{counts.without_token} requests had no token, or a wrong one." if counts.without_token else "",
    ]
    return " ".join([seen, *filter(None, more)])


def check_sending(counts: Counts) -> str:
    """Check that the relay can send mirrors."""
    if counts.problem is not None and counts.waiting:
        raise Broken(
            f"The relay cannot send its mirrors to {counts.destination}: {counts.problem}. {counts.waiting} are "
            "waiting.",
            export_fix(counts.problem, "relay"),
        )
    return f"The relay sends its mirrors to {counts.destination}, and {counts.waiting} are waiting."


def check_mirrors(counts: Counts) -> str:
    """Check that the mirrors of most calls are stored."""
    check_sending(counts)
    if counts.waiting and counts.waiting >= counts.sent:
        raise Broken(
            f"{counts.waiting} calls are waiting for their agents' traces, which {counts.destination} does not have.",
            _SAME_MLFLOW,
        )
    lost = sum(counts.dropped.values())
    if lost and lost >= counts.sent:
        raise Broken(f"The relay has mirrored {counts.sent} calls, and {_dropped(counts)}.", _drop_fix(counts))
    waiting = f"{counts.waiting} are waiting for their agents' traces"
    seen = f"{counts.sent} calls are mirrored to {counts.destination}, {waiting}"
    return f"{seen}, and {_dropped(counts)}." if lost else f"{seen}, and none was dropped."


def check_spans(new: Counts, trace: Trace | None, url: str, tracking_uri: str) -> str:
    """Check that the gateway's spans of the probe call reached the relay, and that it found the call in them.

    Args:
        new: The relay's counts since the probe was sent, including the spans of other gateways.
        trace: The probe's trace.
        url: The relay's URL.
        tracking_uri: The MLflow server of the agent's traces.
    """
    if mirrors_in(trace):
        return "The gateway's spans reached the relay, and the call is mirrored."
    if not new.requests and new.without_token:
        raise Broken("The gateway's spans reached the relay without its token.", f"Set {_WITH_TOKEN} at the gateway.")
    if not new.requests:
        raise Broken(
            "No span of the gateway reached the relay.",
            f"Enable tracing at the gateway and set {_TO_RELAY.format(url=url)}, or its own settings for that. gRPC "
            "needs a collector in between. Gateways keep spans for some seconds; --wait allows for more.",
        )
    _check_recognised(new)
    if not new.mirrored:
        raise Broken(
            "The gateway's spans reached the relay, but belong to no caller's trace.",
            "Configure the gateway to continue the caller's traceparent (OTEL_PROPAGATORS=tracecontext) and to export "
            "its span of the request, not only that of the model call.",
        )
    if new.dropped:
        raise Broken(f"The relay found the call, and {_dropped(new)}.", _drop_fix(new))
    if new.problem is not None:
        raise Broken(
            f"The relay cannot send the mirror to {new.destination}: {new.problem}.", export_fix(new.problem, "relay")
        )
    where = f"The relay writes to {new.destination}, and the agent traces into {tracking_uri}."
    raise Broken(
        f"The mirror is waiting for the agent's trace. {where}"
        if new.waiting
        else f"The mirror was stored elsewhere. {where}",
        "Set the relay's --tracking-uri or MLFLOW_TRACKING_URI to the agent's MLflow server.",
    )


def _check_recognised(counts: Counts) -> None:
    if not counts.recognised:
        raise Broken(
            f"Spans arrive, but none of {counts.unrecognised} is a model call.",
            "Configure the gateway to trace model calls with attributes that the relay reads: OpenTelemetry's "
            "gen_ai.*, OpenInference's, OpenLLMetry's, MLflow's, or those of LiteLLM's otel callback.",
        )


def _dropped(counts: Counts) -> str:
    texts = {reason.value: text for reason, text in WHY.items()}
    return "; ".join(
        f"{count} dropped because {texts.get(reason, reason)}" for reason, count in sorted(counts.dropped.items())
    )


def _drop_fix(counts: Counts) -> str:
    if Reason.UNKNOWN_TRACE.value in counts.dropped:
        return _SAME_MLFLOW
    return "See the relay's log; docs/operating.md says what to do for each reason."


def _counts(status: dict[str, Any]) -> Counts:
    received = status["relay"]
    problem = status["problem"]
    return Counts(
        destination=excerpt(str(status["destination"]), 100),
        problem=None if problem is None else excerpt(str(problem)),
        requests=int(received["requests"]),
        without_token=int(received["refused"].get("401", 0)),
        recognised=int(received.get("recognised", 0)),
        unrecognised=int(received.get("unrecognised", 0)),
        orphaned=int(received.get("orphaned", 0)),
        given_up=int(received.get("dropped", 0)),
        mirrored=int(received.get("mirrored", 0)),
        sent=int(status["sent"]),
        waiting=int(status["waiting"]),
        dropped={excerpt(str(reason), 40): int(count) for reason, count in status["dropped"].items()},
    )


def examine_relay(url: str, patience_s: float, on_check: Callable[[Check], None]) -> list[Check]:
    """Check a relay alone: ``relay``, ``relay_token``, ``relay_spans``, ``relay_mirrors``, up to the first broken link.

    Args:
        url: The relay's URL.
        patience_s: Seconds that calls may wait for their traces.
        on_check: Called with each check as soon as it has run.
    """
    relay = Relay(url)
    checks: list[Check] = []
    links: dict[str, Callable[[], str]] = {
        "relay": relay.check_answers,
        "relay_token": relay.check_token,
        "relay_spans": lambda: check_received(relay.counts(), relay.url),
        "relay_mirrors": lambda: check_mirrors(relay.lasting_counts(patience_s)),
    }
    for name, look in links.items():
        checks.append(Check.of(name, look))
        on_check(checks[-1])
        if not checks[-1].ok:
            break
    return checks
