"""The gateways of the table in ``test_gateways.py``: one function each that starts one and returns how to reach it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import ThreadingHTTPServer

import pytest

from agent_gateway_client.demo.gateway import ENDPOINTS, DemoGateway
from tests.support.flask_gateway import flask_server, wsgi_server
from tests.support.gateways import MLFLOW, MODELS, Column, exporter_to, serving
from tests.support.made_up_gateway import MadeUpGateway


@contextmanager
def mlflow_ai_gateway(request: pytest.FixtureRequest) -> Iterator[Column]:
    gateway: DemoGateway = request.getfixturevalue("gateway")
    for name in MODELS.keys() - ENDPOINTS.keys():
        gateway.create_endpoint(name, MODELS[name])
    # MLflow 3.15 reports a failure in the stream, and asks no other model.
    yield Column(gateway.openai_base_url, has_own_traces=True, streams_fall_back=MLFLOW > (3, 15))


@contextmanager
def asgi_middleware(request: pytest.FixtureRequest) -> Iterator[Column]:
    yield Column(f"{request.getfixturevalue('fastapi_url')}/v1")


@contextmanager
def litellm_proxy(request: pytest.FixtureRequest) -> Iterator[Column]:
    yield request.getfixturevalue("litellm_proxy").column


BY_BOTH = {
    "end": "The mirror ends after the last byte was sent, some milliseconds after the caller has the answer.",
    "attempt of a client that hangs up": "If the client hangs up, the mirror is an error, but the attempt is not.",
}
UNTOLD = {
    "v1": {
        **BY_BOTH,
        "first chunk": "The time to the first chunk is missing.",
        "status of a cut stream": "A stream that breaks off has the HTTP status 500, although the client was sent 200.",
    },
    "v2": {**BY_BOTH, "invalid request": "A request that LiteLLM cannot translate for the provider has no mirror."},
}
"""Facts that LiteLLM's callback does not report, by its version. Measured with LiteLLM 1.106.2 and 1.110.2."""


def litellm_otel(version: str) -> Callable[[pytest.FixtureRequest], AbstractContextManager[Column]]:
    @contextmanager
    def column(request: pytest.FixtureRequest) -> Iterator[Column]:
        yield request.getfixturevalue("litellm_otel")(version).column._replace(untold=UNTOLD[version])

    return column


@contextmanager
def flask_in_threads(request: pytest.FixtureRequest) -> Iterator[Column]:
    gateway: DemoGateway = request.getfixturevalue("gateway")
    with exporter_to(gateway.tracking_uri) as exporter, serving(flask_server(gateway.provider.url, exporter)) as url:
        yield Column(f"{url}/v1")


@contextmanager
def wsgi_middleware(request: pytest.FixtureRequest) -> Iterator[Column]:
    gateway: DemoGateway = request.getfixturevalue("gateway")
    with exporter_to(gateway.tracking_uri) as exporter, serving(wsgi_server(gateway.provider.url, exporter)) as url:
        yield Column(f"{url}/v1")


@contextmanager
def made_up(request: pytest.FixtureRequest) -> Iterator[Column]:
    gateway: DemoGateway = request.getfixturevalue("gateway")
    with exporter_to(gateway.tracking_uri) as exporter:
        handler = type("Handler", (MadeUpGateway,), {"provider_url": gateway.provider.url, "exporter": exporter})
        server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 128})
        with serving(server(("127.0.0.1", 0), handler)) as url:
            yield Column(f"{url}/v1")


COLUMNS: dict[str, Callable[[pytest.FixtureRequest], AbstractContextManager[Column]]] = {
    "MLflow AI Gateway": mlflow_ai_gateway,
    "ASGI middleware": asgi_middleware,
    "LiteLLM Proxy": litellm_proxy,
    "LiteLLM otel v1": litellm_otel("v1"),
    "LiteLLM otel v2": litellm_otel("v2"),
    "Flask in threads": flask_in_threads,
    "WSGI middleware": wsgi_middleware,
    "a made-up one": made_up,
}
