"""What other packages' wrappers add to a call of OpenAI's SDK. They do more than ours: each creates its own span.

Each runs in a separate process, because most of them cannot be undone: first the bare call and the floor, in turns,
then the bare call with the wrapper. The floor is the median of all processes; in a single one it is within the noise. A
wrapper that is not installed is reported. Exports go to a closed port of this machine.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import openai

from benchmarks.measure import interleave, loop, median
from benchmarks.report import Report
from benchmarks.samples import BASE_URL, MESSAGES, Nowhere
from benchmarks.tracing import active_span, floor_hook, http_client

CALLS = 10
ROUNDS = 15
NOWHERE = "http://127.0.0.1:9"


def run(report: Report) -> None:
    missing = {name: module for name, (module, _) in PEERS.items() if not _is_installed(module)}
    for name, module in missing.items():
        report.note(f"{name} was left out: the module {module} is not installed.")
    names = [name for name in PEERS if name not in missing]
    floors, found = [], {}
    for name, done in zip(names, map(_process, names), strict=True):
        if done.returncode:
            report.note(f"{name} was left out: {done.stderr.strip().splitlines()[-1]}")
            continue
        bare, floor, wrapped = json.loads(done.stdout.splitlines()[-1])
        floors.append(1e6 * (floor - bare))
        found[name] = 1e6 * (wrapped - bare)
    if found:
        floor = statistics.median(floors)
        for name, value in {"floor": floor, **found}.items():
            report.add(
                "one call, OpenAI's SDK, other wrappers", name, value, "µs", ratio=value / floor, ratio_of="floor"
            )


def _process(name: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.peers", name]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _braintrust(client: openai.OpenAI) -> Any:
    import braintrust

    os.environ.update(BRAINTRUST_APP_URL=NOWHERE, BRAINTRUST_API_URL=NOWHERE, BRAINTRUST_API_KEY="none")
    braintrust.init_logger(project="benchmarks", set_current=True)
    return braintrust.wrap_openai(client)


def _langfuse(client: openai.OpenAI) -> Any:
    os.environ.update(LANGFUSE_HOST=NOWHERE, LANGFUSE_PUBLIC_KEY="none", LANGFUSE_SECRET_KEY="none")
    import langfuse.openai  # noqa: F401 (replaces methods of OpenAI's classes)

    return client


def _langsmith(client: openai.OpenAI) -> Any:
    os.environ.update(LANGSMITH_TRACING="true", LANGSMITH_ENDPOINT=NOWHERE, LANGSMITH_API_KEY="none")
    from langsmith.wrappers import wrap_openai

    return wrap_openai(client)


def _openinference(client: openai.OpenAI) -> Any:
    from openinference.instrumentation.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument(tracer_provider=_provider())
    return client


def _openllmetry(client: openai.OpenAI) -> Any:
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument(tracer_provider=_provider())
    return client


def _mlflow(client: openai.OpenAI) -> Any:
    import mlflow

    mlflow.openai.autolog()
    return client


def _provider() -> Any:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider


PEERS: dict[str, tuple[str, Callable[[openai.OpenAI], Any]]] = {
    "Braintrust": ("braintrust", _braintrust),
    "Langfuse": ("langfuse", _langfuse),
    "OpenInference": ("openinference.instrumentation.openai", _openinference),
    "OpenLLMetry": ("opentelemetry.instrumentation.openai", _openllmetry),
    "LangSmith": ("langsmith", _langsmith),
    "mlflow.openai.autolog": ("mlflow", _mlflow),
}


def _measure(name: str) -> None:
    logging.disable()
    with active_span():
        bare, floor, wrapped = _client(), _client(floor_hook), _client()
        samples = interleave({"bare": _calls(bare), "floor": _calls(floor)}, 0, least=ROUNDS)
        found = [median("bare")(samples), median("floor")(samples)]
        samples = interleave({"wrapped": _calls(PEERS[name][1](wrapped))}, 0, warm_up=5, least=ROUNDS)
        print(json.dumps([*found, median("wrapped")(samples)]), flush=True)
    # Do not wait for exports that cannot be sent.
    os._exit(0)


def _client(*hooks: Callable[[Any], Any]) -> openai.OpenAI:
    return openai.OpenAI(base_url=BASE_URL, api_key="none", http_client=http_client(*hooks))


def _calls(client: openai.OpenAI) -> Callable[[], float]:
    return loop(lambda: client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES), CALLS)


if __name__ == "__main__":
    _measure(sys.argv[1])
