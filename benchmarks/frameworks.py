"""What the adapters of LangChain and LiteLLM add to a call, beside a hand-written hook on the same HTTP client."""

import warnings
from collections.abc import Callable
from typing import Any

import httpx

from agent_gateway_client import GatewayCallbackHandler, instrument_litellm
from benchmarks.measure import Samples, interleave, loop
from benchmarks.report import Report
from benchmarks.tracing import BASE_URL, GATEWAY, active_span, answering_transport, floor_hook

CALLS = 10
SECONDS = 12


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
            self.client.post("/chat/completions")
            return ChatResult(generations=[ChatGeneration(message=AIMessage("one two three"))])

    def call(*hooks: Any, **options: Any) -> Callable[[], Any]:
        client = httpx.Client(base_url=BASE_URL, transport=answering_transport(), event_hooks={"request": [*hooks]})
        model = Model(client=client, **options)
        return lambda: model.invoke("one two three")

    def ours() -> float:
        # Opened and closed around the measurement: while a handler is open, every model's methods are replaced.
        with GatewayCallbackHandler(GATEWAY) as handler:
            wrapped = call(callbacks=[handler])
            wrapped()
            return loop(wrapped, CALLS)()

    bare, floor = call(), call(floor_hook)
    return interleave({"bare": loop(bare, CALLS), "floor": loop(floor, CALLS), "ours": ours}, SECONDS)


def litellm() -> Samples:
    """litellm.completion() between instrument_litellm() and its undo.

    The provider is one of LiteLLM's custom ones and does no more than send its request, as above: of the three
    milliseconds that a call of OpenAI's takes there, the adapter is less than the noise.
    """
    import litellm

    class Provider(litellm.CustomLLM):
        client = httpx.Client()

        def completion(self, *args: Any, **options: Any) -> Any:
            self.client.post(f"{BASE_URL}/chat/completions")
            return options["model_response"]

    def call(*hooks: Any) -> float:
        provider.client = httpx.Client(transport=transport, event_hooks={"request": [*hooks]})
        complete()
        return loop(complete, CALLS)()

    def complete() -> None:
        litellm.completion(model="benchmarks/model", messages=messages, api_base=BASE_URL, api_key="none")

    def ours() -> float:
        with instrument_litellm(GATEWAY):
            return call()

    transport, provider = answering_transport(), Provider()
    messages = [{"role": "user", "content": "one two three"}]
    litellm.custom_provider_map = [{"provider": "benchmarks", "custom_handler": provider}]
    return interleave({"bare": call, "floor": lambda: call(floor_hook), "ours": ours}, 2 * SECONDS)
