"""The middleware configured only by the environment: the shared exporter, and an invalid environment."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from agent_gateway_client.demo._port import listen
from agent_gateway_client.server import GatewayTracingMiddleware, current_gateway_call, flush, gateway_call, shared
from agent_gateway_client.server.export import Exporter
from tests.support.middleware import TRACED, fastapi_app, post
from tests.support.server import DEADLINE_S, MemoryDestination
from tests.support.wire_samples import CHAT, SAMPLES


@pytest.fixture(autouse=True)
def nothing_shared_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start as a new process does, and stop what the test started."""
    monkeypatch.setattr(shared, "_exporter", None)
    for name in ("AGENT_GATEWAY_EXPORTER", "AGENT_GATEWAY_WAIT_SECONDS"):
        monkeypatch.delenv(name, raising=False)
    yield
    if shared._exporter is not None:
        assert shared._exporter.flush(DEADLINE_S)


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_GATEWAY_EXPORTER", "carrier-pigeon")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryDestination:
    """The store that the environment configures."""
    destination = MemoryDestination()
    monkeypatch.setattr(shared, "destination_from_environment", lambda mlflow: destination)
    return destination


def traced_app() -> Any:
    app = fastapi_app(SAMPLES["chat"])
    app.add_middleware(GatewayTracingMiddleware)
    return app


async def test_one_exporter_for_all(store: MemoryDestination):
    """Two applications and code that is not ASGI send through one queue and one thread."""
    for _ in range(2):
        await post(traced_app(), CHAT)
    with gateway_call(TRACED, endpoint="worker"):
        pass
    exporter = shared.shared_exporter()
    assert exporter.flush(DEADLINE_S)
    assert [name for name in store.names if name.startswith("gateway/")] == ["gateway/chat"] * 2 + ["gateway/worker"]


def test_one_exporter_for_all_threads(monkeypatch: pytest.MonkeyPatch):
    """Threads that need the exporter at the same time get the same one, which is made once."""
    made = []

    def destination(mlflow: object) -> MemoryDestination:
        made.append(MemoryDestination())
        return made[-1]

    monkeypatch.setattr(shared, "destination_from_environment", destination)
    barrier = threading.Barrier(8)
    got: list[Exporter] = []

    def get() -> None:
        barrier.wait()
        got.append(shared.shared_exporter())

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(made) == len(set(map(id, got))) == 1


def test_a_wrong_environment_fails_the_start(wrong: None, caplog: pytest.LogCaptureFixture):
    """A server that runs the application's lifespan does not start, and logs the reason in one line."""
    server = uvicorn.Server(uvicorn.Config(traced_app(), log_config=None, ws="none"))
    # Newer versions of uvicorn end the process here, older ones do it in uvicorn.run().
    with listen() as listener, contextlib.suppress(SystemExit):
        server.run(sockets=[listener])
    assert server.lifespan.should_exit
    assert not server.started
    (line,) = [record.getMessage() for record in caplog.records if "agent-gateway-client" in record.getMessage()]
    assert "AGENT_GATEWAY_EXPORTER is 'carrier-pigeon'; the exporters are: mlflow, otlp." in line


async def test_a_wrong_environment_fails_no_request(wrong: None, caplog: pytest.LogCaptureFixture):
    """If the server runs no lifespan, requests are served without mirrors, and the log has the reason once."""
    app = traced_app()
    for _ in range(3):
        response = await post(app, CHAT)
        assert (response.status_code, response.content) == (200, SAMPLES["chat"].body)
    assert sum("carrier-pigeon" in record.getMessage() for record in caplog.records) == 1


def test_a_wrong_environment_fails_no_call(wrong: None, caplog: pytest.LogCaptureFixture):
    """Calls of code that is not ASGI are not failed either."""
    for _ in range(3):
        with gateway_call(TRACED) as call:
            assert current_gateway_call() is call
    assert flush(DEADLINE_S)
    assert sum("carrier-pigeon" in record.getMessage() for record in caplog.records) == 1
