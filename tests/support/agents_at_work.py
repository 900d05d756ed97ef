"""A program of agents that call gateways and trace into MLflow in typical ways. It logs what it did.

Usage: ``python -m tests.support.agents_at_work KINDS RUNS EXPERIMENT TRACKING_URI GATEWAYS LOG``: kinds of agents and
the gateways' base URLs of OpenAI's API, with commas between them, and a file that gets a JSON object per line.
"""

import asyncio
import contextvars
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import openai

from agent_gateway_client import wrap_openai
from tests.support.e2e import learn_server_version

CALLS = 4
OPEN_SECONDS = 20.0
KILLED_AFTER_SECONDS = 9.0
KINDS = ("autolog threads", "spans threads", "autolog asyncio", "spans asyncio", "root alone", "killed")

_lock = threading.Lock()


class Log:
    """The program's log, one JSON object per line, each written immediately."""

    def __init__(self, path: Path, kind: str, experiment_id: str) -> None:
        self._file = path.open("a")
        self._kind = kind
        self._experiment_id = experiment_id

    def write(self, what: str, span: Any, **more: Any) -> None:
        entry = {"what": what, "trace_id": span.trace_id, "span_id": span.span_id, "name": span.name, **more}
        with _lock:
            self._file.write(json.dumps({**entry, "kind": self._kind, "experiment_id": self._experiment_id}) + "\n")
            self._file.flush()


def ask(client: openai.OpenAI, log: Log, span: Any, number: int) -> None:
    log.write("calling", span)
    answer = client.chat.completions.create(model="chat", messages=[{"role": "user", "content": f"call {number}"}])
    assert answer.usage is not None
    log.write("call", span, tokens=answer.usage.total_tokens)


def in_threads(clients: Sequence[openai.OpenAI], log: Log) -> None:
    with mlflow.start_span("agent") as root:
        log.write("begun", root)

        def step(number: int) -> None:
            with mlflow.start_span(f"step {number}") as span:
                ask(clients[number % len(clients)], log, span, number)
            log.write("span", span)

        with ThreadPoolExecutor(CALLS) as pool:
            done = [pool.submit(contextvars.copy_context().run, step, number) for number in range(CALLS)]
        for future in done:
            future.result()
    log.write("ended", root)


async def in_tasks(clients: Sequence[openai.AsyncOpenAI], log: Log) -> None:
    with mlflow.start_span("agent") as root:
        log.write("begun", root)

        async def step(number: int) -> None:
            with mlflow.start_span(f"step {number}") as span:
                client = clients[number % len(clients)]
                answer = await client.chat.completions.create(
                    model="chat", messages=[{"role": "user", "content": f"call {number}"}]
                )
                assert answer.usage is not None
                log.write("call", span, tokens=answer.usage.total_tokens)
            log.write("span", span)

        await asyncio.gather(*(step(number) for number in range(CALLS)))
    log.write("ended", root)


def root_alone(clients: Sequence[openai.OpenAI], log: Log) -> None:
    with mlflow.start_span("agent") as root:
        log.write("begun", root)
        for number in range(CALLS):
            ask(clients[number % len(clients)], log, root, number)
        time.sleep(OPEN_SECONDS)
    log.write("ended", root)


def killed(clients: Sequence[openai.OpenAI], log: Log) -> None:
    with mlflow.start_span("agent") as root:
        log.write("begun", root)
        for number in range(CALLS):
            with mlflow.start_span(f"step {number}") as span:
                ask(clients[number % len(clients)], log, span, number)
        threading.Event().wait()


def at_once(run: Callable[[], None], runs: int, most: int) -> None:
    with ThreadPoolExecutor(most) as pool:
        for future in [pool.submit(contextvars.Context().run, run) for _ in range(runs)]:
            future.result()


def main(kinds: str, *arguments: str) -> None:
    for kind in kinds.split(","):
        work(kind, *arguments)


def work(kind: str, runs: str, experiment: str, tracking_uri: str, gateways: str, log_path: str) -> None:
    mlflow.set_tracking_uri(tracking_uri)
    # On a busy machine MLflow's client may time out on it, and then the agents' spans would not be stored.
    learn_server_version()
    log = Log(Path(log_path), kind, str(mlflow.set_experiment(experiment).experiment_id))
    options: dict[str, Any] = {"api_key": "none", "timeout": 120.0, "max_retries": 2}
    urls = gateways.split(",")
    if kind.startswith("autolog"):
        mlflow.openai.autolog()
    if kind.endswith("asyncio"):

        async def all_tasks() -> None:
            clients = [wrap_openai(openai.AsyncOpenAI(base_url=url, **options)) for url in urls]
            for _ in range(int(runs)):
                await in_tasks(clients, log)

        asyncio.run(all_tasks())
        mlflow.flush_trace_async_logging()
        return
    clients = [wrap_openai(openai.OpenAI(base_url=url, **options)) for url in urls]
    if kind == "killed":
        threading.Timer(KILLED_AFTER_SECONDS, os.kill, (os.getpid(), signal.SIGKILL)).start()
        at_once(lambda: killed(clients, log), int(runs), int(runs))
    elif kind == "root alone":
        at_once(lambda: root_alone(clients, log), int(runs), int(runs))
    else:
        for _ in itertools.repeat(None, int(runs)):
            in_threads(clients, log)
    mlflow.flush_trace_async_logging()


if __name__ == "__main__":
    main(*sys.argv[1:])
