"""``GET /agent-gateway/status`` and ``GET /agent-gateway/metrics``, and who may read them.

If ``AGENT_GATEWAY_STATUS_TOKEN`` is set, the pages require ``Authorization: Bearer`` with that token. Otherwise
MLflow's and LiteLLM's gateways serve them to authenticated callers, and other gateways do not have these pages.
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
    """A response.

    Attributes:
        status: The HTTP status.
        media_type: The body's media type.
        body: The body.
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
    """Return the token for the pages; ``None`` if none is set.

    Raises:
        ConfigurationError: It is too short, or not valid in a header.
    """
    return token_in(TOKEN_VARIABLE)


def read_page(path: str, companion: Companion) -> Page:
    """Return the page at a path that ends with one of ``PATHS``, for an authorized caller."""
    if path.endswith(STATUS_PATH):
        return _as_json(200, companion.status())
    text = prometheus.page()
    if text is None:
        return _as_json(404, {"detail": "prometheus_client is not installed: pip install prometheus_client"})
    return Page(200, *text)


def closed() -> Page:
    """Return the response for a caller without the token."""
    return _as_json(401, {"detail": f"Send Authorization: Bearer with the value of {TOKEN_VARIABLE}."})


def _as_json(status: int, value: object) -> Page:
    return Page(status, "application/json", json.dumps(value).encode())
