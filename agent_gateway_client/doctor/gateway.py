"""A client for the gateway: finds its chat route, sends the probe, and reads the companion's answers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from agent_gateway_client.doctor.checks import Broken, Settings, excerpt
from agent_gateway_client.http import wrap_httpx
from agent_gateway_client.server.observed.pages import STATUS_PATH, TOKEN_VARIABLE
from agent_gateway_client.server.probe import COMPANION_HEADER, PROBE_HEADER
from agent_gateway_client.w3c import TraceContext, extract

_ROUTE = "/chat/completions"
_ROUTES = (f"/mlflow/v1{_ROUTE}", f"/gateway/mlflow/v1{_ROUTE}", f"/v1{_ROUTE}", _ROUTE)
"""Paths of the chat route below a gateway's usual URL: MLflow's, then all others."""

_TIMEOUT = httpx.Timeout(120.0, connect=10.0)
_QUESTION = {"messages": [{"role": "user", "content": "Answer with the one word OK."}]}

ADD_COMPANION = {
    "mlflow": "Install agent-gateway-client[mlflow-gateway] where the server runs, and start it with "
    "`mlflow server --app-name agent-gateway`.",
    "litellm": "Add to the proxy's configuration: "
    "`litellm_settings: {callbacks: agent_gateway_client.server.litellm_proxy.mirror}`.",
    "other": "Add `app.add_middleware(GatewayTracingMiddleware)` from agent_gateway_client.server to the gateway.",
}
"""How to add the companion to each kind of gateway."""


class Companion(NamedTuple):
    """The companion's answer to a probe.

    Attributes:
        version: Version of agent-gateway-client in the gateway.
        traceparents: Number of ``traceparent`` headers on the received probe.
        received: The trace context that it has read from them, or ``None``.
        exporter: ``mlflow`` or ``otel``, the attribute names of its mirrors.
        problem: Why it could not send its last mirrors, or ``None``.
    """

    version: str
    traceparents: int
    received: TraceContext | None
    exporter: str
    problem: str | None


class Status(NamedTuple):
    """The status of one worker's companion, from ``/agent-gateway/status``.

    Attributes:
        version: Version of agent-gateway-client in the gateway.
        destination: The destination of its mirrors.
        waiting: Number of calls whose mirrors are still to be sent.
        problem: Why it could not send its last mirrors, or ``None``.
    """

    version: str
    destination: str
    waiting: int
    problem: str | None

    @property
    def is_stuck(self) -> bool:
        """Whether mirrors wait because they cannot be sent."""
        return bool(self.waiting and self.problem)


class Answer(NamedTuple):
    """The result of the probe call.

    Attributes:
        sent: The trace context on the sent request, or ``None``.
        total_tokens: The response's total tokens, or ``None``.
        companion: The companion's answer, or ``None``.
    """

    sent: TraceContext | None
    total_tokens: int | None
    companion: Companion | None


class Gateway:
    """The gateway to check, called with the same client as an agent's.

    Args:
        settings: The doctor's settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = settings.gateway.rstrip("/")
        self._headers = {PROBE_HEADER: "1"}
        if settings.api_key:
            self._headers["authorization"] = f"Bearer {settings.api_key}"
        self._route = ""
        self.kind = "other"

    def find_route(self) -> str:
        """Connect to the gateway, and find its chat route without a model call.

        Returns:
            The finding.

        Raises:
            Broken: The gateway cannot be reached, or has no chat route.
        """
        parts = urlsplit(self._url)
        candidates = [self._url] if self._url.endswith(_ROUTE) else [self._url + route for route in _ROUTES]
        with self._client() as client:
            for url in candidates:
                response = self._post(client, url, {})
                if response.is_redirect:
                    raise Broken(
                        f"{url} redirects to {excerpt(response.headers.get('location', ''))}.",
                        "Set --gateway to the URL that it redirects to: clients lose bodies and headers on a redirect.",
                    )
                self._note_kind(url, response)
                # A 404 may also mean that the model of an empty request does not exist. A 405 to GET shows that the
                # route exists.
                if response.status_code not in (404, 405) or client.get(url).status_code == 405:
                    self._route = url
                    return f"{url} answers."
        raise Broken(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} answers, but has no chat route at "
            f"{', '.join(urlsplit(url).path for url in candidates)}.",
            "Set --gateway to the URL that your agents use as base_url.",
        )

    def status(self) -> Status | None:
        """Return the companion's status, without a model call; ``None`` if there is none, or access is denied."""
        parts = urlsplit(self._url)
        path = parts.path.rstrip("/")
        token = os.environ.get(TOKEN_VARIABLE)
        with httpx.Client(headers={"authorization": f"Bearer {token}"}) if token else self._client() as client:
            while True:
                try:
                    response = client.get(parts._replace(path=path + STATUS_PATH, query="").geturl())
                except httpx.HTTPError:
                    return None
                if (status := _status(response)) or not path:
                    return status
                # The gateway's URL may have a path below the root.
                path = path.rpartition("/")[0]

    def probe(self) -> Answer:
        """Call the model once, in the active span.

        Raises:
            Broken: The call failed.
        """
        with self._client() as client:
            wrap_httpx(client, [self._route])
            response = self._post(client, self._route, {"model": self._settings.model, **_QUESTION})
        self._check_status(response)
        try:
            usage = response.json().get("usage") or {}
            total = usage.get("total_tokens")
        except (ValueError, AttributeError):
            total = None
        return Answer(
            sent=extract(dict(response.request.headers)),
            total_tokens=total if isinstance(total, int) else None,
            companion=_companion(response),
        )

    def ask(self) -> Companion | None:
        """Probe the companion again with a model call without trace context. It does not answer rejected callers."""
        with self._client() as client:
            try:
                return _companion(self._post(client, self._route, {"model": self._settings.model, **_QUESTION}))
            except Broken:
                return None

    def _client(self) -> httpx.Client:
        return httpx.Client(timeout=_TIMEOUT, headers=self._headers, auth=self._credentials())

    def _credentials(self) -> httpx.BasicAuth | None:
        """Return MLflow's credentials if the gateway is the tracking server. Those in the URL take precedence."""
        user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
        gateway, store = urlsplit(self._url), urlsplit(self._settings.tracking_uri)
        same = (gateway.scheme, gateway.hostname, gateway.port) == (store.scheme, store.hostname, store.port)
        if not (user and password and same) or self._settings.api_key or gateway.username:
            return None
        return httpx.BasicAuth(user, password)

    def _post(self, client: httpx.Client, url: str, body: Mapping[str, Any]) -> httpx.Response:
        try:
            return client.post(url, json=body)
        except httpx.HTTPError as error:
            raise Broken(
                f"{url.rpartition('@')[2]} cannot be reached ({type(error).__name__}: {excerpt(str(error))}).",
                "Start the gateway; check the host, the port and https in --gateway, and proxies in between "
                "(HTTP_PROXY, NO_PROXY).",
            ) from error

    def _note_kind(self, url: str, response: httpx.Response) -> None:
        if any(name.startswith("x-litellm") for name in response.headers):
            self.kind = "litellm"
        elif "/mlflow/v1/" in url and response.status_code not in (404, 405):
            self.kind = "mlflow"

    def _check_status(self, response: httpx.Response) -> None:
        status, model = response.status_code, self._settings.model
        if response.is_success:
            return
        finding = f"The gateway answers {status} to a call to {model!r}: {excerpt(response.text)}"
        if status in (401, 403):
            raise Broken(finding, "Set the gateway's key with --api-key or AGENT_GATEWAY_API_KEY.")
        if status in (400, 404, 405, 422):
            raise Broken(finding, "Set --model to the name of a chat endpoint of this gateway.")
        # A LiteLLM Proxy without its database packages answers 500 to a call without a key.
        key = "" if self._settings.api_key else " If the gateway requires a key, give it with --api-key."
        raise Broken(finding, f"Check the endpoint's provider, key and quota; the gateway's log has details.{key}")


def _status(response: httpx.Response) -> Status | None:
    try:
        facts = response.json()
        return Status(
            version=excerpt(str(facts["version"]), 40),
            destination=excerpt(str(facts["destination"]), 100),
            waiting=int(facts["waiting"]),
            problem=None if facts["problem"] is None else excerpt(str(facts["problem"])),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _companion(response: httpx.Response) -> Companion | None:
    try:
        facts = json.loads(response.headers[COMPANION_HEADER])
        received = facts["traceparent"]
        return Companion(
            version=excerpt(str(facts["version"]), 40),
            traceparents=int(facts["traceparents"]),
            received=extract({"traceparent": received}) if isinstance(received, str) else None,
            exporter=excerpt(str(facts["exporter"]), 40),
            problem=None if facts["problem"] is None else excerpt(str(facts["problem"])),
        )
    except (KeyError, TypeError, ValueError):
        return None
