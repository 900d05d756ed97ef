"""What the adapters of LangChain and LiteLLM add to a call, beside what else can be done on the same HTTP client."""

import warnings
from collections.abc import Callable
from typing import Any

import httpx
import mlflow

from agent_gateway_client import GatewayCallbackHandler, instrument_litellm
from benchmarks.client import EXTRA_HEADERS, OTEL, instrumented_client
from benchmarks.measure import Samples, interleave, loop
from benchmarks.report import Report
from benchmarks.samples import BASE_URL, GATEWAY
from benchmarks.tracing import active_span, floor_hook, http_client

CALLS = 10
SECONDS = 7


def run(report: Report) -> None:
    with active_span(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _report(report, "one call, LangChain", langchain())
        _report(report, "one call, LiteLLM", litellm())


def _report(report: Report, group: str, samples: Samples) -> None:
    rows = report.added(group, samples, [name for name in samples if name != "bare"])
    report.mark(f"Client, {group}, in terms of the floor", rows["ours"].ratio or 0, 3)


def langchain() -> Samples:
    """A chat model with our handler in its callbacks.

    It does no more than send its request, for what ChatOpenAI does beside that is a millisecond in which the cost of
    the adapter, which is the same for all models, is hard to see.
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
        # Opened and closed around the measurement: while a handler is open, every model's methods are replaced.
        with GatewayCallbackHandler(GATEWAY) as handler:
            wrapped = call(http_client(), callbacks=[handler])
            wrapped()
            return loop(wrapped, CALLS)()

    plain = Model(client=http_client())
    cases = {
        "bare": loop(call(http_client()), CALLS),
        "floor": loop(call(http_client(floor_hook)), CALLS),
        "ours": ours,
        OTEL: loop(call(instrumented_client()), CALLS),
        EXTRA_HEADERS: loop(lambda: plain.invoke("one two three", extra_headers=_mlflows_headers()), CALLS),
    }
    return interleave(cases, SECONDS)


def litellm() -> Samples:
    """litellm.completion() between instrument_litellm() and its undo.

    The provider is one of LiteLLM's custom ones and does no more than send its request, as above: of the three
    milliseconds that a call of OpenAI's takes there, the adapter is less than the noise.
    """
    import litellm

    class Provider(litellm.CustomLLM):
        client = http_client()

        def completion(self, *args: Any, **options: Any) -> Any:
            self.client.post("/chat/completions", headers=options["headers"])
            return options["model_response"]

    def call(client: httpx.Client, headers: Callable[[], Any] = dict) -> float:
        def complete() -> None:
            litellm.completion(extra_headers=headers(), **arguments)

        provider.client = client
        complete()
        return loop(complete, CALLS)()

    def ours() -> float:
        with instrument_litellm(GATEWAY):
            return call(plain)

    plain, hooked, instrumented, provider = http_client(), http_client(floor_hook), instrumented_client(), Provider()
    messages = [{"role": "user", "content": "one two three"}]
    arguments: Any = {"model": "benchmarks/model", "messages": messages, "api_base": BASE_URL, "api_key": "none"}
    litellm.custom_provider_map = [{"provider": "benchmarks", "custom_handler": provider}]
    cases = {
        "bare": lambda: call(plain),
        "floor": lambda: call(hooked),
        "ours": ours,
        OTEL: lambda: call(instrumented),
        EXTRA_HEADERS: lambda: call(plain, _mlflows_headers),
    }
    return interleave(cases, 1.5 * SECONDS)


def _mlflows_headers() -> Any:
    return mlflow.tracing.get_tracing_context_headers_for_http_request()
