"""The demo's agent: an OpenAI client behind `wrap_openai` that does what agents do, and notes what it sent.

It can be run with ``mlflow.openai.autolog()``, whose spans are then the parents of the gateway's, and with
nothing but ``mlflow.start_span``.
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
        mode: What the agent did: ``tools``, ``stream``, ``async`` and so on.
        endpoint: The gateway endpoint that was called.
        instrumentation: What made the client's span: ``autolog`` or ``start_span``.
        traceparents: The values of all ``traceparent`` headers on the request.
        attempts: The statuses of the provider attempts that the gateway has to make for it, in order.
    """

    mode: str
    endpoint: str
    instrumentation: str
    traceparents: tuple[str, ...]
    attempts: tuple[str, ...] = ("OK",)

    @property
    def status(self) -> str:
        """The status that the call has to end with."""
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
        """Do everything once, in one trace.

        Args:
            on_step: Is told what the agent does next.
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
            # Behind the hook of wrap_openai, so that it sees what goes out.
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
        """One step of the agent: a span of its own, and what to expect of the requests sent in it."""
        reset_mode, reset_attempts = self._mode.set(mode), self._attempts.set(attempts)
        try:
            with mlflow.start_span(name, span_type="CHAIN"):
                yield
        finally:
            self._mode.reset(reset_mode)
            self._attempts.reset(reset_attempts)

    def _note(self, request: httpx.Request) -> None:
        # A hook is called before a streamed body is read; the bodies here are all in memory.
        endpoint = json.loads(request.content)["model"]
        sent = tuple(request.headers.get_list("traceparent"))
        self.calls.append(SentCall(self._mode.get(), endpoint, self._instrumentation, sent, self._attempts.get()))

    async def _note_async(self, request: httpx.Request) -> None:
        self._note(request)
