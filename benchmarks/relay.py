"""Gateways' calls taken in per second of processor time: the relay, a collector, and MLflow's own OTLP endpoint.

The spans are those of a LiteLLM Proxy's calls, twelve each, with 4 KB of payload in one of them. The relay and the
collector send to a receiver that discards: the relay its mirrors, the collector everything. MLflow stores.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent_gateway_client.demo._port import Reservation
from agent_gateway_client.demo._server import NOT_INHERITED, MlflowServer
from agent_gateway_client.relay import protobuf
from agent_gateway_client.relay.collect import Collection
from agent_gateway_client.relay.dialects import ALL_KEYS, NAMES
from agent_gateway_client.relay.limits import Limits
from agent_gateway_client.server.mirror import Convention, mirror
from benchmarks.load import processor_seconds
from benchmarks.report import Report
from benchmarks.stores import otlp_sink

ROUNDS = 2
BODIES = {"collector": 100, "relay": 100, "MLflow": 4}
TIMES = {"collector": 4}
"""Requests per round, and how often each is sent. Linux counts processor time in hundredths of a second."""

CALLS_PER_BODY = 40
SPANS_PER_CALL = 12
PAYLOAD_BYTES = 4_000
MARK = 0.8
LEAST_OF_MLFLOW = 10
QUIET_S = 1.5
FACTS = {
    "litellm.call_id": "c",
    "litellm.model_group": "chat",
    "litellm.provider.model": "openai/gpt-4o-mini",
    "llm.request.type": "acompletion",
    "gen_ai.operation.name": "acompletion",
    "gen_ai.system": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.usage.input_tokens": 10,
    "gen_ai.usage.output_tokens": 5,
    "gen_ai.response.finish_reasons": '["stop"]',
    **{f"metadata.{number}": "x" for number in range(25)},
    "gen_ai.input.messages": "p" * PAYLOAD_BYTES,
}
STEPS = {
    "decode": "reading the bodies",
    "collect": "finding the calls",
    "mirror": "making the mirrors",
    "rest": "HTTP, the queue and sending",
}


class Part(NamedTuple):
    """A program that accepts spans.

    Attributes:
        url: The URL for spans.
        group: Its process group.
        headers: Its required headers besides OTLP's own.
    """

    url: str
    group: int
    headers: dict[str, str]


def run(report: Report) -> None:
    with ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="agent-gateway-")))
        sink = running.enter_context(otlp_sink())
        parts = {"relay": running.enter_context(_relay(sink))}
        if program := _collector_program():
            parts["collector"] = running.enter_context(_collector(program, sink, directory))
        else:
            report.note("No collector: .venv-backends has no rotel that runs here (make venv-backends).")
        parts["MLflow"] = running.enter_context(_mlflow(directory))
        rates = _rates(parts)
        _check_that_all_are_mirrored(parts["relay"].url)
    base = "collector" if "collector" in rates else "relay"
    report.compared("OTLP in, 12 spans a call", rates, base, "calls/s of processor time")
    _explain(report, 1 / float(np.median(rates["relay"])))
    if base == "collector":
        share = float(np.median(rates["relay"] / rates["collector"]))
        if share >= MARK:
            report.mark("Relay, in terms of the collector", share, MARK, at_least=True)
        else:
            # The collector is written in Rust, and forwards its spans without inspecting them.
            report.note(
                f"The relay takes in {share:.2f} of what the collector does; the rows above say where its time goes."
            )
    times = float(np.median(rates["relay"] / rates["MLflow"]))
    report.mark("Relay, in terms of MLflow's own OTLP endpoint", times, LEAST_OF_MLFLOW, at_least=True)


def _rates(parts: dict[str, Part]) -> dict[str, Any]:
    """Return calls per second of processor time of each part, round by round."""
    found: dict[str, list[float]] = {name: [] for name in parts}
    first = count(1)
    for number in range(ROUNDS + 1):
        for name, part in parts.items():
            bodies = [body_of(next(first) * CALLS_PER_BODY) for _ in range(BODIES[name])] * TIMES.get(name, 1)
            before = processor_seconds(part.group)
            _send(part, bodies)
            taken = _processor_seconds_when_quiet(part.group) - before
            # The first round imports and warms up.
            if number:
                found[name].append(len(bodies) * CALLS_PER_BODY / taken)
    return {name: np.array(values) for name, values in found.items()}


def _check_that_all_are_mirrored(url: str) -> None:
    """Check that all calls are mirrored: a relay that drops calls is fast too."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    connection.request("GET", "/agent-gateway/status")
    status = json.loads(connection.getresponse().read())
    assert status["sent"] == BODIES["relay"] * CALLS_PER_BODY * (ROUNDS + 1), status


def _send(part: Part, bodies: list[bytes]) -> None:
    address = urlsplit(part.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    for body in bodies:
        while True:
            connection.request("POST", "/v1/traces", body, {"content-type": "application/x-protobuf", **part.headers})
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                break
            assert answer.status in (429, 503), answer.status
            time.sleep(0.2)
    connection.close()


def _processor_seconds_when_quiet(group: int) -> float:
    """Wait until a part is idle; return the processor time that it has used by then."""
    taken, since = processor_seconds(group), time.monotonic()
    # The relay waits for two seconds before it assembles a call.
    while time.monotonic() - since < Limits().settle_seconds + QUIET_S:
        time.sleep(0.1)
        now = processor_seconds(group)
        if now - taken > 0.02:
            taken, since = now, time.monotonic()
    return processor_seconds(group)


def _explain(report: Report, per_call: float) -> None:
    """Report where the relay's time goes: its steps measured in this process, and the rest of the total."""
    steps = _steps()
    steps["rest"] = max(0.0, per_call - sum(steps.values()))
    for step, seconds in steps.items():
        report.add(
            "relay, processor time of a call",
            STEPS[step],
            1e6 * seconds,
            "µs",
            ratio=seconds / per_call,
            ratio_of="all",
        )


def _steps() -> dict[str, float]:
    """Return the seconds of processor time of each step per call."""
    bodies = [body_of(first * CALLS_PER_BODY) for first in range(1, 51)]
    calls = len(bodies) * CALLS_PER_BODY
    collection = Collection(Limits())
    moments = [time.process_time()]
    batches = [protobuf.read_request(body, ALL_KEYS, NAMES, Limits().request_spans, 1000) for body in bodies]
    moments.append(time.process_time())
    for batch in batches:
        collection.add(batch.spans)
    found = collection.due(all_of_them=True)
    moments.append(time.process_time())
    spans = sum(len(mirror(call, Convention.OTEL)) for call in found)
    moments.append(time.process_time())
    assert (len(found), spans) == (calls, 2 * calls)
    return {
        step: (after - before) / calls
        for step, before, after in zip(("decode", "collect", "mirror"), moments, moments[1:], strict=False)
    }


@contextmanager
def _relay(sink: str) -> Iterator[Part]:
    environment = {"AGENT_GATEWAY_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": sink}
    code = "from agent_gateway_client.cli import main; main()"
    command = [sys.executable, "-c", code, "relay", "--port", "0"]
    with _process(command, environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        yield Part(line.partition("Send traces to ")[2].partition(";")[0], process.pid, {})


@contextmanager
def _collector(program: Path, sink: str, directory: Path) -> Iterator[Part]:
    reserved, unused = Reservation(), Reservation()
    url = f"http://127.0.0.1:{reserved.port}"
    environment = {
        "ROTEL_AGENT": str(program),
        "RELAY_URL": sink,
        "ROTEL_OTLP_HTTP_ENDPOINT": url[7:],
        "ROTEL_OTLP_GRPC_ENDPOINT": f"127.0.0.1:{unused.port}",
    }
    reserved.release()
    unused.release()
    script = Path(__file__).parents[1] / "integrations" / "otel-collector" / "collector.sh"
    with (directory / "collector.log").open("wb") as log, _process(["sh", script], environment, stdout=log) as process:
        _wait_for(url)
        yield Part(url, process.pid, {})


@contextmanager
def _mlflow(directory: Path) -> Iterator[Part]:
    server = MlflowServer(directory, f"sqlite:///{directory / 'mlflow.db'}", app_name=None, port=None, env={})
    server.start()
    try:
        assert server.pid
        yield Part(server.url, server.pid, {"x-mlflow-experiment-id": "0"})
    finally:
        server.close()


@contextmanager
def _process(command: list[Any], environment: dict[str, str], **more: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program in a process group of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith((*NOT_INHERITED, "ROTEL_"))}
    own = {**inherited, "NO_PROXY": "127.0.0.1", "PYTHONUNBUFFERED": "1", **environment}
    process = subprocess.Popen(list(map(str, command)), env=own, start_new_session=True, **more)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _collector_program() -> Path | None:
    """Return the collector of the back ends' environment, if it runs here."""
    venv = Path(os.environ.get("BACKENDS_VENV") or Path(__file__).parents[1] / ".venv-backends")
    for program in venv.glob("lib/python*/site-packages/rotel/rotel-agent"):
        if subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0:
            return program
    return None


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    address = urlsplit(url)
    while True:
        try:
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=5)
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)


def body_of(first: int) -> bytes:
    """Return a request with the spans of some calls, each in its own trace."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    now = time.time_ns()
    for call in range(first, first + CALLS_PER_BODY):
        for number in range(SPANS_PER_CALL):
            span = Span(
                trace_id=(call + 1).to_bytes(16, "big"),
                span_id=(call * SPANS_PER_CALL + number + 1).to_bytes(8, "big"),
                parent_span_id=(9 if number == 0 else call * SPANS_PER_CALL + 1).to_bytes(8, "big"),
                name="Received Proxy Server Request" if number == 0 else "router",
                kind=2 if number == 0 else 1,  # type: ignore[arg-type]
                flags=0x300 if number == 0 else 0x100,
                start_time_unix_nano=now,
                end_time_unix_nano=now + 1_000_000,
            )
            told = FACTS if number == 1 else {"service": "router", "call_type": "acompletion"}
            span.attributes.extend(KeyValue(key=key, value=_value(value)) for key, value in told.items())
            spans.append(span)
    return request.SerializeToString()


def _value(value: object) -> AnyValue:
    return AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=str(value))
