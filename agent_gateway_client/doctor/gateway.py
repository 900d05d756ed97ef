"""The gateway under examination: where its chat route is, what it answers, and what its companion says."""

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
"""Where gateways have their chat route, below the URL that people know them by: MLflow's, then all others."""

_TIMEOUT = httpx.Timeout(120.0, connect=10.0)
_QUESTION = {"messages": [{"role": "user", "content": "Answer with the one word OK."}]}

ADD_COMPANION = {
    "mlflow": "Install agent-gateway-client[mlflow-gateway] where the server runs, and start it with "
    "`mlflow server --app-name agent-gateway`.",
    "litellm": "Add to the proxy's configuration: "
    "`litellm_settings: {callbacks: agent_gateway_client.server.litellm_proxy.mirror}`.",
    "other": "Add `app.add_middleware(GatewayTracingMiddleware)` from agent_gateway_client.server to the gateway.",
}
"""How a gateway of each kind gets the companion."""


class Companion(NamedTuple):
    """What the companion in the gateway says of itself.

    Attributes:
        version: Of agent-gateway-client there.
        traceparents: Number of ``traceparent`` headers that the probe arrived with.
        received: The caller's context as it was understood, or ``None``.
        exporter: ``mlflow`` or ``otel``, by the names that the mirrors are written with.
        problem: Why it could not send its last mirrors, or ``None``.
    """

    version: str
    traceparents: int
    received: TraceContext | None
    exporter: str
    problem: str | None


class Status(NamedTuple):
    """What one worker's companion says at ``/agent-gateway/status``.

    Attributes:
        version: Of agent-gateway-client there.
        destination: Where its mirrors go.
        waiting: Calls that wait to be sent.
        problem: Why it could not send the last ones, or ``None``.
    """

    version: str
    destination: str
    waiting: int
    problem: str | None

    @property
    def is_stuck(self) -> bool:
        """Whether calls wait because they cannot be sent."""
        return bool(self.waiting and self.problem)


class Answer(NamedTuple):
    """What came of the probe call.

    Attributes:
        sent: The trace context that the request carried when it went out, or ``None``.
        total_tokens: As the response reports them, or ``None``.
        companion: ``None`` where it did not answer.
    """

    sent: TraceContext | None
    total_tokens: int | None
    companion: Companion | None


class Gateway:
    """A gateway that is to be examined, through the same client as an agent's.

    Args:
        settings: Where it is.
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
        """Reach the gateway, and find its chat route without a call of a model.

        Returns:
            What was seen.

        Raises:
            Broken: It cannot be reached, or has no such route.
        """
        parts = urlsplit(self._url)
        candidates = [self._url] if self._url.endswith(_ROUTE) else [self._url + route for route in _ROUTES]
        with self._client() as client:
            for url in candidates:
                response = self._post(client, url, {})
                if response.is_redirect:
                    raise Broken(
                        f"{url} redirects to {excerpt(response.headers.get('location', ''))}.",
                        "Give --gateway the URL that it redirects to: clients lose bodies and headers on the way.",
                    )
                self._note_kind(url, response)
                # A gateway may say of an empty request that its model is not there; of no route does it say that the
                # method is wrong.
                if response.status_code not in (404, 405) or client.get(url).status_code == 405:
                    self._route = url
                    return f"{url} answers."
        raise Broken(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} answers, but has no chat route at "
            f"{', '.join(urlsplit(url).path for url in candidates)}.",
            "Give --gateway the URL that your agents use as base_url.",
        )

    def status(self) -> Status | None:
        """Ask the companion for its status, which calls no model; ``None`` where it is not there, or not open to us."""
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
                # The gateway's URL may be below its root.
                path = path.rpartition("/")[0]

    def probe(self) -> Answer:
        """Call the model once, in the active span.

        Raises:
            Broken: The answer is not a success.
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
        """Ask the companion again with a call that has no trace. It does not answer callers who are refused."""
        with self._client() as client:
            try:
                return _companion(self._post(client, self._route, {"model": self._settings.model, **_QUESTION}))
            except Broken:
                return None

    def _client(self) -> httpx.Client:
        return httpx.Client(timeout=_TIMEOUT, headers=self._headers, auth=self._credentials())

    def _credentials(self) -> httpx.BasicAuth | None:
        """MLflow's own credentials, for a gateway that is the tracking server; those in the URL go before them."""
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
        said = f"The gateway answers {status} to a call of {model!r}: {excerpt(response.text)}"
        if status in (401, 403):
            raise Broken(said, "Give the key that the gateway asks for with --api-key or AGENT_GATEWAY_API_KEY.")
        if status in (400, 404, 405, 422):
            raise Broken(said, "Give --model the name of a chat endpoint that this gateway has.")
        # A LiteLLM Proxy without its database packages says 500 to a call without a key.
        key = "" if self._settings.api_key else " If it asks its callers for a key, give that with --api-key."
        raise Broken(said, f"Mend the endpoint: its provider, its key, its quota; the gateway's log says more.{key}")


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
