"""What the adapters of LangChain and LiteLLM add to a call, compared with alternatives on the same HTTP client."""

import warnings
from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
import mlflow

from agent_gateway_client import GatewayCallbackHandler, instrument_litellm
from benchmarks.client import BESIDE_OTEL, EXTRA_HEADERS, OTEL, instrumented_client
from benchmarks.measure import Samples, interleave, loop, paired
from benchmarks.report import Report
from benchmarks.samples import GATEWAY, MESSAGES
from benchmarks.tracing import active_span, as_if_alone, floor_hook, http_client

CALLS = 40
SECONDS = 5

SETTLING_CALLS = 200
"""More than CPython runs an instruction in the general form before it specializes it again: 53 times at first, and
longer where the cases of a comparison give it objects of different types."""

IDLE = "a handler that is not in the run"
NO_HANDLER = "no handler"
IDLE_CALLS: dict[str, Callable[[Any], Any]] = {
    "invoke": lambda model: model.invoke("one two three"),
    "stream": lambda model: list(model.stream("one two three")),
}


def run(report: Report) -> None:
    with active_span(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _report(report, "one call, LangChain", langchain())
        _report(report, "one call, LiteLLM", litellm())
        for name, call in IDLE_CALLS.items():
            samples = idle(call)
            report.compared(f"LangChain's {name}", samples, NO_HANDLER, "µs")
            report.mark(f"Client, LangChain's {name} with {IDLE}", paired(IDLE, NO_HANDLER)(samples), 1.02)


def _report(report: Report, group: str, samples: Samples) -> None:
    rows = report.added(group, samples, [name for name in samples if name != "bare"])
    report.mark(f"Client, {group}, in terms of the floor", rows["ours"].ratio or 0, 1)


def langchain() -> Samples:
    """A chat model with our handler in its callbacks.

    It only sends its request: ChatOpenAI's other work takes a millisecond, in which the adapter's cost, which is
    the same for all models, is hard to see.
    """
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, ChatResult

    class Model(BaseChatModel):
        client: Any

        @property
        def _llm_type(self) -> str:
            return "benchmarks"

        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
            self.client.post("/chat/completions", headers=options.get("extra_headers"))
            return ChatResult(generations=[ChatGeneration(message=AIMessage("one two three"))])

    def call(client: httpx.Client, **options: Any) -> Callable[[], Any]:
        model = Model(client=client, **options)
        return lambda: model.invoke("one two three")

    def ours() -> float:
        with GatewayCallbackHandler(GATEWAY) as handler:
            return settled(call(http_client(), callbacks=[handler]))()

    plain = Model(client=http_client())
    cases = {
        "bare": settled(call(http_client())),
        "floor": settled(call(http_client(floor_hook))),
        "ours": as_if_alone(ours),
        BESIDE_OTEL: ours,
        OTEL: settled(call(instrumented_client())),
        EXTRA_HEADERS: settled(lambda: plain.invoke("one two three", extra_headers=_mlflows_headers())),
    }
    return interleave(cases, SECONDS)


def idle(call: Callable[[Any], Any]) -> Samples:
    """Microseconds of a call of LangChain's fake model, with and without a handler that is not passed to it."""
    from langchain_core.language_models import FakeListChatModel

    model = FakeListChatModel(responses=["one two three"])
    timed = settled(lambda: call(model))

    def with_handler() -> float:
        with GatewayCallbackHandler(GATEWAY):
            return 1e6 * timed()

    return interleave({NO_HANDLER: lambda: 1e6 * timed(), IDLE: with_handler}, SECONDS)


def settled(function: Callable[[], Any]) -> Callable[[], float]:
    """Return a function that returns the least seconds of this thread's processor time of a call.

    The first :data:`SETTLING_CALLS` do not count. A handler is opened and closed around each measurement, because while
    it is open every model's methods are replaced. Python then specializes the calls again, which happens once in a
    process whose handler stays open.
    """

    def timed() -> float:
        for _ in range(SETTLING_CALLS):
            function()
        return least()

    least = loop(function, CALLS, batches=CALLS)
    return timed


def litellm() -> Samples:
    """What the adapter replaces in a litellm.completion(), between instrument_litellm() and its undo.

    These are LiteLLM's own functions, called as completion() calls them around a request. A whole call takes two
    milliseconds, mostly for its price and for LiteLLM's log, in which the adapter's cost is less than the noise.
    """
    import litellm.utils
    from litellm.litellm_core_utils.litellm_logging import Logging

    def call(client: httpx.Client, headers: Callable[[], Any] = dict) -> float:
        def complete() -> None:
            now = datetime.now()
            logging = Logging("gpt-4o-mini", MESSAGES, False, "completion", now, "call", "function")
            # Once with the arguments, and once with what the provider takes of them.
            logging.update_environment_variables({}, {}, "gpt-4o-mini")
            logging.update_environment_variables({}, {}, "gpt-4o-mini")
            client.post("/chat/completions", headers=headers())
            litellm.utils.update_response_metadata(None, logging, "gpt-4o-mini", {}, now, now)

        return settled(complete)()

    def ours() -> float:
        with instrument_litellm(GATEWAY):
            return call(plain)

    plain, hooked, instrumented = http_client(), http_client(floor_hook), instrumented_client()
    cases = {
        "bare": lambda: call(plain),
        "floor": lambda: call(hooked),
        "ours": as_if_alone(ours),
        OTEL: lambda: call(instrumented),
        EXTRA_HEADERS: lambda: call(plain, _mlflows_headers),
    }
    return interleave(cases, SECONDS)


def _mlflows_headers() -> Any:
    return mlflow.tracing.get_tracing_context_headers_for_http_request()
