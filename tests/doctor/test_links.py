"""doctor/links.py: the origin of a mirror."""

import secrets
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow.entities import Span
from mlflow.gateway.tracing_utils import _maybe_create_distributed_span
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from agent_gateway_client.doctor.checks import Broken
from agent_gateway_client.doctor.links import check_mirror, flush_advice, is_ours
from agent_gateway_client.server.export.mlflow import MlflowDestination
from agent_gateway_client.server.export.mlflow_store import SqlStore
from agent_gateway_client.server.mirror import Convention, mirror
from agent_gateway_client.w3c import TraceContext
from tests.support.mlflow_database import database_in
from tests.support.server import begin_trace, deliver_to, plain_call


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlAlchemyStore]:
    """A database into which this process traces, as MLflow's server does if its own mirror is not lost."""
    uri = database_in(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_USE_BATCH_SPAN_PROCESSOR", "false")
        patch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
        mlflow.set_tracking_uri(uri)
        # An earlier test's store has its own database.
        mlflow.set_experiment("gateway")
        mlflow.tracing.reset()
        yield SqlAlchemyStore(uri, "mlflow-artifacts:/")
        mlflow.tracing.reset()
        mlflow.set_tracking_uri(None)


@pytest.fixture
def caller() -> TraceContext:
    return TraceContext(secrets.randbits(128), secrets.randbits(64), 1)


def stored_mirror(store: SqlAlchemyStore, caller: TraceContext) -> Span:
    """Return the gateway's span in the caller's trace, as the doctor reads it."""
    spans: list[Span] = store.get_trace(f"tr-{caller.trace_id:032x}").data.spans
    (found,) = [span for span in spans if span.name == "gateway/chat"]
    return found


@pytest.mark.parametrize("unknown", [{}, {"http_status": None}, {"http_status": None, "endpoint_id": None}])
@pytest.mark.parametrize("linked", [TraceContext(0xB, 0xC, 1), None], ids=["linked", "not linked"])
def test_the_companions_mirror_is_ours(
    linked: TraceContext | None, unknown: dict[str, Any], store: SqlAlchemyStore, caller: TraceContext
):
    """With or without a link to the gateway's own trace, and whichever facts are unknown."""
    begin_trace(store, caller)
    destination = MlflowDestination(SqlStore(lambda: store))
    deliver_to(destination, plain_call(parent=caller, linked=linked, **unknown))
    assert is_ours(stored_mirror(store, caller))


def test_mlflows_own_mirror_is_not_ours(store: SqlAlchemyStore, caller: TraceContext):
    """It contains the gateway's trace id, and has no link to it."""
    endpoint: Any = SimpleNamespace(endpoint_id="e-1", endpoint_name="chat")
    with mlflow.start_span("the gateway's own"):
        _maybe_create_distributed_span({"traceparent": caller.traceparent}, endpoint)
    own = stored_mirror(store, caller)
    assert own.get_attribute("mlflow.gateway.linkedTraceId") is not None
    assert not is_ours(own)


@pytest.mark.parametrize("python", [(3, 10, 13), (3, 12, 0), (3, 12, 2), (3, 12, 3), (3, 13, 0)])
def test_how_a_script_has_to_end_is_named(python: tuple[int, int, int]):
    """Three releases of Python lose every waiting span when the script ends, which the doctor itself cannot see."""
    advice = flush_advice(python)
    assert "mlflow.flush_trace_async_logging()" in advice
    assert ("starts no thread at exit" in advice) is (python in {(3, 12, 0), (3, 12, 2)})


@pytest.mark.parametrize("convention", Convention)
def test_a_mirror_that_came_by_otlp(convention: Convention, store: SqlAlchemyStore, caller: TraceContext):
    """Mirrors sent to MLflow over OTLP can cost agents their traces on MLflow 3.18; the doctor says so."""
    begin_trace(store, caller)
    (sent,) = encode_spans(mirror(plain_call(parent=caller), convention)).resource_spans
    store.log_spans("0", [Span.from_otel_proto(span) for scope in sent.scope_spans for span in scope.spans])
    trace = store.get_trace(f"tr-{caller.trace_id:032x}")
    if convention is Convention.MLFLOW:
        assert check_mirror(trace, None, "http://mlflow", 0.5) == "The mirror arrived within 0.5 s of the call."
    else:
        with pytest.raises(Broken, match=r"MLflow 3\.18") as broken:
            check_mirror(trace, None, "http://mlflow", 0.5)
        assert "agent-gateway relay" in broken.value.fix
