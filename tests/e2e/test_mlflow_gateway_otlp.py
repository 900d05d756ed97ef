"""MLflow's AI Gateway with AGENT_GATEWAY_EXPORTER=otlp: only mirrors go to a collector."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.e2e import DEADLINE_S, Database, wait_for
from tests.support.otlp_receiver import Receiver

CANARY = "canary-otlp-50c1"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def exporting(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoGateway]:
    """A gateway whose environment has only what its mirrors need."""
    environment = {"AGENT_GATEWAY_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
    with DemoGateway(env=environment, directory=tmp_path_factory.mktemp("otlp")) as gateway:
        yield gateway


def test_only_mirrors_go_to_the_collector(exporting: DemoGateway, receiver: Receiver):
    """The gateway's own trace, with its payload, stays in MLflow; the standard variables do not export it."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    answer = httpx.post(
        f"{exporting.openai_base_url}/chat/completions",
        json={"model": "chat", "messages": [{"role": "user", "content": CANARY}]},
        headers={"traceparent": f"00-{trace_id}-{span_id}-01"},
        timeout=DEADLINE_S,
    )
    assert CANARY in answer.text
    wait_for("the mirror", lambda: len(receiver.spans) >= 2)
    mirror, attempt = receiver.spans
    assert (mirror.name, attempt.name) == ("gateway/chat", "chat gpt-4o-mini")
    assert {span.trace_id.hex() for span in receiver.spans} == {trace_id}
    assert mirror.parent_span_id.hex() == span_id

    (link,) = mirror.links
    database = Database(Path(exporting.log_path.parent) / "mlflow.db")
    own = wait_for("the gateway's own trace", lambda: database.rows_of(f"tr-{link.trace_id.hex()}"))
    assert any(CANARY in str(row) for row in own)
    exporting.stop_server()
    assert len(receiver.spans) == 2
    assert not any(CANARY.encode() in request.payload for request in receiver.requests)
