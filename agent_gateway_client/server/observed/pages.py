"""``GET /agent-gateway/status`` and ``GET /agent-gateway/metrics``, and who may read them.

With ``AGENT_GATEWAY_STATUS_TOKEN`` the pages are open to whoever sends ``Authorization: Bearer`` and the token, and to
nobody else. Without it, they are open to those whom the gateway itself lets in, where it can be asked (MLflow's and
LiteLLM's); other gateways do not have these pages.
"""

import json
from typing import NamedTuple

from agent_gateway_client.server.bearer import token_in
from agent_gateway_client.server.observed import prometheus
from agent_gateway_client.server.observed.companion import Companion

STATUS_PATH = "/agent-gateway/status"
METRICS_PATH = "/agent-gateway/metrics"
PATHS = (STATUS_PATH, METRICS_PATH)

TOKEN_VARIABLE = "AGENT_GATEWAY_STATUS_TOKEN"


class Page(NamedTuple):
    """An answer.

    Attributes:
        status: HTTP's.
        media_type: Of the body.
        body: The text.
    """

    status: int
    media_type: str
    body: bytes

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The response's headers."""
        challenge = [("www-authenticate", "Bearer")] if self.status == 401 else []
        return [
            ("content-type", self.media_type),
            ("content-length", str(len(self.body))),
            ("cache-control", "no-store"),
            *challenge,
        ]


def token_from_environment() -> str | None:
    """Return the token that opens the pages; ``None`` where there is none.

    Raises:
        ConfigurationError: It is too short, or cannot be in a header.
    """
    return token_in(TOKEN_VARIABLE)


def read_page(path: str, companion: Companion) -> Page:
    """Return the page at a path that ends with one of ``PATHS``, for a caller who may read it."""
    if path.endswith(STATUS_PATH):
        return _as_json(200, companion.status())
    text = prometheus.page()
    if text is None:
        return _as_json(404, {"detail": "prometheus_client is not installed here: pip install prometheus_client"})
    return Page(200, *text)


def closed() -> Page:
    """Return the answer for a caller without the token."""
    return _as_json(401, {"detail": f"Send Authorization: Bearer with the value of {TOKEN_VARIABLE}."})


def _as_json(status: int, value: object) -> Page:
    return Page(status, "application/json", json.dumps(value).encode())
