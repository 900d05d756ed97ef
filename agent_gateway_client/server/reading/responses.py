"""Reads model, tokens, finish reason and error from a response, never its text.

Supports the APIs in the table of docs/providers.md, as JSON, server-sent events, one JSON object per line, and Amazon's
binary event stream. The API is recognized by the objects of the response, so a gateway may serve any API at any route.
This module returns only counts and names of a strict form.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from agent_gateway_client.server.call import Cost, TokenUsage
from agent_gateway_client.server.reading import event_stream
from agent_gateway_client.server.reading.bodies import KeptBody
from agent_gateway_client.server.reading.json_ends import first_members, last_members
from agent_gateway_client.server.reading.usage import TOP_LEVEL_COUNTS, USAGE_NAMES, reported_cost, token_usage

_MODEL = re.compile(r"[A-Za-z0-9._:/@-]{1,200}\Z")
_FINISH_REASON = re.compile(r"[A-Za-z_]{1,40}\Z")
_ERROR = re.compile(
    r"[45]\d\d\Z|(?:[a-z]{1,20}_){1,4}(?:error|exceeded|filter|quota)\Z|[A-Z][A-Za-z]{0,40}(?:Error|Exception|Timeout)\Z"
)
"""An HTTP status, an error name of OpenAI or Anthropic, or an exception's class, which MLflow's gateway sends."""

_ENDED = frozenset({"completed", "incomplete", "failed", "cancelled"})
"""The final states of OpenAI's Responses API."""

_MODEL_NAMES = ("model", "modelVersion")
_FINISH_NAMES = ("stop_reason", "stopReason", "finish_reason", "finishReason", "done_reason")
_OWN_FINISH_NAMES = ("stop_reason", "stopReason", "finish_reason", "done_reason")
"""Finish reasons that are members of the response itself, or of its usage object."""

_WANTED = frozenset((*USAGE_NAMES, *TOP_LEVEL_COUNTS, *_MODEL_NAMES, *_FINISH_NAMES))

_EVENTS_WITH_FACTS = re.compile(
    rf'"(?:{"|".join((*USAGE_NAMES, *_FINISH_NAMES))}|error)"\s*:(?!\s*null)|"type"\s*:\s*"(?:error|response\.failed)"'
)
"""Matches the few events of a stream that have more than a piece of the answer."""


@dataclass(slots=True)
class ResponseFacts:
    """The facts in a response; ``None`` for those that it does not report.

    Attributes:
        model: The model that answered.
        usage: The tokens; ``input_tokens`` includes cached tokens even if the provider counts them separately.
        finish_reason: The provider's value.
        error_type: An error after a successful HTTP status, as in a stream that breaks off.
        cost: The cost that the provider reports.
    """

    model: str | None = None
    usage: TokenUsage | None = None
    finish_reason: str | None = None
    error_type: str | None = None
    cost: Cost | None = None

    def __bool__(self) -> bool:
        return self != ResponseFacts()


LAST_CHUNKS = 4
"""Chunks to search for a stream's last event, which a server may split."""

_LAST_EVENT = re.compile(
    rb"(?:\A|\n)data: ?\[DONE\]"
    rb'|(?<!\\)"type"\s*:\s*"(?:message_stop|response\.(?:completed|incomplete|failed))"'
    rb'|(?<!\\)"finishReason"\s*:'
    rb'|(?<!\\)"type"\s*:\s*"message-end"'
    rb'|(?<!\\)"done"\s*:\s*true'
    rb"|:event-type\x07\x00\x08metadata"
)
"""The last events of OpenAI's chat, of Anthropic and OpenAI's responses, Gemini, Cohere, Ollama, and Bedrock. The text
of an answer is a JSON string with escaped quotes and no line breaks, so it does not match."""


def has_last_event(content: bytes) -> bool:
    """Return whether the content has a stream's last event, after which clients may disconnect."""
    return _LAST_EVENT.search(content) is not None


def read_response(body: KeptBody, *, streaming: bool) -> ResponseFacts:
    """Read a successful response.

    Args:
        body: The kept parts of the body. Invalid content is skipped.
        streaming: Whether it is a stream of events rather than a JSON document.
    """
    reading = _Reading()
    if event_stream.begins(body.ends()[0]):
        _read_event_stream(reading, body)
        return reading.facts()
    head, tail = (part.decode("utf-8", "replace") for part in body.ends())
    head = head.removeprefix("\ufeff")
    if streaming:
        _read_stream(reading, *((head, tail) if body.cut else (head + tail, None)))
    elif body.cut:
        reading.see_members(first_members(head, _WANTED), in_array=head.lstrip().startswith("["))
        reading.see_members(last_members(tail, _WANTED), in_array=tail.rstrip().endswith("]"))
    else:
        reading.see_document(_parsed(head + tail))
    return reading.facts()


def read_requested_model(body: KeptBody) -> str | None:
    """Return the requested model of a JSON request; ``None`` if there is none or it does not look like a name."""
    head, tail = (part.decode("utf-8", "replace") for part in body.ends())
    if body.cut:
        members = first_members(head, _MODEL_NAMES) + last_members(tail, _MODEL_NAMES)
        names = [value for depth, name, value in members if depth == 1 and name == "model"]
        return model_name(names[-1]) if names else None
    request = _parsed(head + tail)
    return model_name(request.get("model")) if isinstance(request, dict) else None


def model_name(value: Any) -> str | None:
    """Return a value if it has the form of a model's name, which excludes sentences."""
    return value if isinstance(value, str) and _MODEL.match(value) else None


def reason_name(value: Any) -> str | None:
    """Return a value if it has the form of a finish reason."""
    return value if isinstance(value, str) and _FINISH_REASON.match(value) else None


def _read_stream(reading: "_Reading", head: str, tail: str | None) -> None:
    lines = _lines(head)
    if tail is None:
        for number, event in enumerate(_events(lines)):
            if number == 0 or _EVENTS_WITH_FACTS.search(event):
                reading.see(_parsed(event))
        return
    _read_stream(reading, head[: head.rfind("\n") + 1], None)
    # The tail may start within an event, such as the large last event of OpenAI's responses.
    first, *lines = _lines(tail)
    reading.see_members(last_members(first, _WANTED), in_event=True)
    for event in _events(lines):
        if _EVENTS_WITH_FACTS.search(event):
            reading.see(_parsed(event))


def _read_event_stream(reading: "_Reading", body: KeptBody) -> None:
    head, tail = body.ends()
    for message in event_stream.messages(head, tail) if body.cut else event_stream.messages(head + tail, None):
        if message.exception is not None:
            reading.see({"error": {"type": message.exception[:1].upper() + message.exception[1:]}})
            continue
        event = _parsed(message.payload.decode("utf-8", "replace"))
        chunk = event_stream.chunk_of(event)
        reading.see(event if chunk is None else _parsed(chunk.decode("utf-8", "replace")))


def _lines(text: str) -> list[str]:
    # Not splitlines(), which splits at other characters too.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _events(lines: Iterable[str]) -> Iterator[str]:
    """Yield the data of server-sent events, and lines that are JSON objects."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:])
        elif line.startswith("{"):
            yield line
        elif not line and data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)


def _int(digits: str) -> int | None:
    # int() raises for more than 4,300 digits, which must not fail the whole document.
    return int(digits) if len(digits) <= 20 else None


_DECODER = json.JSONDecoder(parse_int=_int)


def _parsed(text: str) -> Any:
    try:
        # Some producers send a byte order mark (RFC 8259, 8.1).
        return _DECODER.decode(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None


class _Reading:
    """Collects the facts in the objects of a response."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._usage: dict[str, Any] = {}
        self._finish_reason: str | None = None
        self._error_type: str | None = None

    def facts(self) -> ResponseFacts:
        usage, cost = token_usage(self._usage), reported_cost(self._usage)
        return ResponseFacts(self._model, usage, self._finish_reason, self._error_type, cost)

    def see_document(self, document: Any) -> None:
        # Gemini streams a JSON array unless events were requested.
        for value in document if isinstance(document, list) else [document]:
            self.see(value)

    def see(self, value: Any) -> None:
        """Read one object: a whole response, or an event of one."""
        if not isinstance(value, dict):
            return
        kind = value.get("type")
        self._see_part(value)
        if isinstance(response := value.get("response"), dict):
            self._see_part(response)
        if isinstance(message := value.get("message"), dict):
            # Anthropic's message_start has a preliminary output count, which is not a total.
            usage = message.get("usage")
            begun = {k: v for k, v in usage.items() if k != "output_tokens"} if isinstance(usage, dict) else None
            self._see_part({**message, "usage": begun} if kind == "message_start" else message)
        if isinstance(delta := value.get("delta"), dict):
            self._see_finish_reason(delta.get("stop_reason"))
            if kind == "message-end":
                # Cohere.
                self._see_part(delta)
        if isinstance(session := value.get("session"), dict):
            # OpenAI's Realtime API.
            self._model = self._model or model_name(session.get("model"))
        if isinstance(result := value.get("result"), dict):
            # Cloudflare Workers AI.
            self._see_part(result)
        if kind == "error" and "error" not in value:
            self._see_error(value)

    def see_members(
        self, members: list[tuple[int, str, Any]], *, in_array: bool = False, in_event: bool = False
    ) -> None:
        """Read the members of an object that was cut."""
        for depth, name, value in members:
            level = depth - in_array
            if level == 3 and name in ("finish_reason", "finishReason"):
                self._see_finish_reason(value)
            elif level == 1 or (level == 2 and in_event):
                self._see_part({name: value})

    def _see_part(self, part: dict[str, Any]) -> None:
        for name in _MODEL_NAMES:
            self._model = self._model or model_name(part.get(name))
        for name in USAGE_NAMES:
            if isinstance(usage := part.get(name), dict):
                self._see_usage(usage)
        self._see_usage({name: part[name] for name in TOP_LEVEL_COUNTS if name in part})
        for name in _OWN_FINISH_NAMES:
            self._see_finish_reason(part.get(name))
        for result in _objects(part.get("results")):
            # watsonx.ai's text generation.
            self._see_usage(result)
        for choice in (*_objects(part.get("choices")), *_objects(part.get("candidates"))):
            self._see_finish_reason(choice.get("finish_reason"))
            self._see_finish_reason(choice.get("finishReason"))
        if part.get("object") == "response" and part.get("status") in _ENDED:
            details = part.get("incomplete_details")
            self._see_finish_reason(part["status"])
            self._see_finish_reason(details.get("reason") if isinstance(details, dict) else None)
        if part.get("error"):
            self._see_error(part["error"])

    def _see_usage(self, usage: dict[str, Any]) -> None:
        self._usage.update((key, count) for key, count in usage.items() if count is not None)
        reason = usage.get("finish_reason", usage.get("stop_reason"))
        # SGLang has an object here.
        self._see_finish_reason(reason.get("type") if isinstance(reason, dict) else reason)

    def _see_finish_reason(self, value: Any) -> None:
        self._finish_reason = reason_name(value) or self._finish_reason

    def _see_error(self, error: Any) -> None:
        values = [error.get(key) for key in ("code", "status", "type")] if isinstance(error, dict) else []
        names = [str(name) for name in values if isinstance(name, (str, int))]
        self._error_type = self._error_type or next((name for name in names if _ERROR.match(name)), "error")


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
