"""Helpers of the doctor's tests: gateways of all kinds, and the doctor's results for them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest

from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.doctor.checks import Check, Settings
from agent_gateway_client.doctor.examine import examine
from agent_gateway_client.server import GatewayTracingMiddleware
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.export.environment import exporter_from_environment
from tests.support.meddler import gateway_app
from tests.support.served import Served

COMMAND = str(Path(sys.executable).parent / "agent-gateway")
PATIENCE_S = 60.0
"""For results that arrive."""
IMPATIENCE_S = 2.0
"""For results that do not arrive."""
ALL = [
    "configuration", "gateway", "store", "span", "endpoint", "trace", "companion", "header", "exporter", "mirror",
    "parent", "tokens",
]  # fmt: skip


def exporter_to(uri: str) -> Exporter:
    """Return an exporter like that of a gateway with MLFLOW_TRACKING_URI."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        return exporter_from_environment()
    finally:
        mlflow.set_tracking_uri(before)


@contextmanager
def asgi_gateway(
    gateway: DemoGateway, *exporters: Exporter, change_answer: Callable[[dict[str, Any]], Any] = lambda answer: answer
) -> Iterator[str]:
    """A gateway other than MLflow's, with one middleware per exporter."""
    app = gateway_app(gateway.provider.url, change_answer)
    for exporter in exporters:
        app.add_middleware(GatewayTracingMiddleware, exporter=exporter)
    with Served(app) as url:
        yield url


def examined(gateway: DemoGateway, url: str = "", patience_s: float = PATIENCE_S, **more: Any) -> list[Check]:
    """Run the doctor on a gateway; by default MLflow's own, without faults."""
    settings = Settings(url or gateway.gateway_url, "chat", gateway.tracking_uri, patience_s=patience_s)
    with pytest.MonkeyPatch.context() as patch:
        # The command sets these for its process.
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        return examine(settings._replace(**more))


def broken(checks: list[Check]) -> Check:
    """Return the failed check, after asserting that it is the only one, and the last."""
    names = [check.name for check in checks]
    expected = ALL[: ALL.index(checks[-1].name) + 1]
    assert names == expected, checks
    assert [check.ok for check in checks] == [True] * (len(checks) - 1) + [False], checks
    assert all(check.detail and (check.ok == (not check.fix)) for check in checks)
    return checks[-1]
