"""The demo's agent: uses an OpenAI client with `wrap_openai`, and records what it sends.

With ``mlflow.openai.autolog()``, autolog's spans are the parents of the mirrors; otherwise those of
``mlflow.start_span``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx
import mlflow
import openai

from agent_gateway_client.openai import wrap_openai

EXPERIMENT = "agent-gateway demo"

WEATHER_TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "The city's name."}},
        "required": ["city"],
    },
}


@dataclass(frozen=True)
class SentCall:
    """One HTTP request that the agent sent to the gateway.

    Attributes:
        mode: The kind of call: ``tools``, ``stream``, ``async`` and so on.
        endpoint: The called gateway endpoint.
        instrumentation: What made the client's span: ``autolog`` or ``start_span``.
        traceparents: The values of all ``traceparent`` headers on the request.
        attempts: The expected statuses of the provider attempts, in order.
    """

    mode: str
    endpoint: str
    instrumentation: str
    traceparents: tuple[str, ...]
    attempts: tuple[str, ...] = ("OK",)

    @property
    def status(self) -> str:
        """The expected status of the call."""
        return self.attempts[-1]


class Agent:
    """An agent that plans a trip.

    Args:
        base_url: Base URL of the gateway's OpenAI API.
        instrumentation: ``autolog`` or ``start_span``.
    """

    def __init__(self, base_url: str, instrumentation: str) -> None:
        self.calls: list[SentCall] = []
        self._base_url = base_url
        self._instrumentation = instrumentation
        self._mode: ContextVar[str] = ContextVar("mode", default="")
        self._attempts: ContextVar[tuple[str, ...]] = ContextVar("attempts", default=("OK",))

    def run(self, on_step: Callable[[str], None]) -> None:
        """Make each kind of call once, in one trace.

        Args:
            on_step: Called with a description of each step.
        """
        if self._instrumentation == "autolog":
            mlflow.openai.autolog()
        try:
            with mlflow.start_span(f"trip agent ({self._instrumentation})", span_type="AGENT") as span:
                span.set_inputs({"question": "What should I pack for Lisbon?"})
                self._run_sync(on_step)
                on_step("runs three async calls side by side")
                asyncio.run(self._side_by_side())
                span.set_outputs({"answer": "A light jacket."})
        finally:
            if self._instrumentation == "autolog":
                mlflow.openai.autolog(disable=True)

    def _run_sync(self, on_step: Callable[[str], None]) -> None:
        transport = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(base_url=self._base_url, api_key="none", max_retries=0, http_client=transport) as client:
            wrap_openai(client)
            # After the hook of wrap_openai, to see the headers that are sent.
            hooks = transport.event_hooks
            transport.event_hooks = {**hooks, "request": [*hooks["request"], self._note]}
            steps: dict[str, Callable[[openai.OpenAI], None]] = {
                "calls a tool": self._tools,
                "streams an answer": self._stream,
                "embeds two texts": self._embeddings,
                "uses the Responses API": self._responses,
                "meets a model that fails and one that steps in": self._fallback,
                "meets a model that fails": self._failure,
            }
            for sentence, step in steps.items():
                on_step(sentence)
                step(client)

    def _tools(self, client: openai.OpenAI) -> None:
        messages: list[Any] = [{"role": "user", "content": "What is the weather in Lisbon?"}]
        tools: list[Any] = [{"type": "function", "function": WEATHER_TOOL}]
        with self._step("tools", "choose a tool"):
            choice = client.chat.completions.create(model="chat", messages=messages, tools=tools)
        message = choice.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls or []:
            with mlflow.start_span("weather", span_type="TOOL") as span:
                arguments = json.loads(call.function.arguments)  # type: ignore[union-attr]
                span.set_inputs(arguments)
                result = f"18 degrees and sunny in {arguments['city']}"
                span.set_outputs(result)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        with self._step("tools", "use the tool's result"):
            client.chat.completions.create(model="chat", messages=messages, tools=tools)

    def _stream(self, client: openai.OpenAI) -> None:
        with self._step("stream", "write the packing list"):
            chunks = client.chat.completions.create(
                model="chat",
                messages=[{"role": "user", "content": "Write a packing list for Lisbon."}],
                stream=True,
            )
            for _ in chunks:
                pass

    def _embeddings(self, client: openai.OpenAI) -> None:
        with self._step("embeddings", "embed the sights"):
            client.embeddings.create(model="embeddings", input=["Alfama at night", "the river Tejo"])

    def _responses(self, client: openai.OpenAI) -> None:
        with self._step("responses", "ask for a restaurant"):
            client.responses.create(model="responses", input="Name a restaurant in Lisbon.")
        with self._step("responses-stream", "ask for a museum"):
            for _ in client.responses.create(model="responses", input="Name a museum.", stream=True):
                pass

    def _fallback(self, client: openai.OpenAI) -> None:
        with self._step("fallback", "ask a model that has a stand-in", attempts=("ERROR", "OK")):
            client.chat.completions.create(
                model="fallback", messages=[{"role": "user", "content": "When does the sun set in Lisbon?"}]
            )

    def _failure(self, client: openai.OpenAI) -> None:
        with (
            contextlib.suppress(openai.APIStatusError),
            self._step("failure", "ask a model that fails", attempts=("ERROR",)),
        ):
            client.chat.completions.create(
                model="failing", messages=[{"role": "user", "content": "Is the tram running?"}]
            )

    async def _side_by_side(self) -> None:
        transport = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=self._base_url, api_key="none", max_retries=0, http_client=transport
        ) as client:
            wrap_openai(client)
            hooks = transport.event_hooks
            transport.event_hooks = {**hooks, "request": [*hooks["request"], self._note_async]}

            async def ask(endpoint: str, question: str) -> None:
                with self._step("async", question):
                    await client.chat.completions.create(
                        model=endpoint, messages=[{"role": "user", "content": question}]
                    )

            await asyncio.gather(
                ask("slow", "How much is a taxi?"), ask("chat", "And a tram?"), ask("chat", "And a boat?")
            )

    @contextlib.contextmanager
    def _step(self, mode: str, name: str, attempts: tuple[str, ...] = ("OK",)) -> Iterator[None]:
        """A step of the agent: its span, and the expected outcome of its requests."""
        reset_mode, reset_attempts = self._mode.set(mode), self._attempts.set(attempts)
        try:
            with mlflow.start_span(name, span_type="CHAIN"):
                yield
        finally:
            self._mode.reset(reset_mode)
            self._attempts.reset(reset_attempts)

    def _note(self, request: httpx.Request) -> None:
        # The content is available: none of the bodies is a stream.
        endpoint = json.loads(request.content)["model"]
        sent = tuple(request.headers.get_list("traceparent"))
        self.calls.append(SentCall(self._mode.get(), endpoint, self._instrumentation, sent, self._attempts.get()))

    async def _note_async(self, request: httpx.Request) -> None:
        self._note(request)
