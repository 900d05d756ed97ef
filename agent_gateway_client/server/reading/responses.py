"""What a response says of the call that it answers: model, tokens, finish reason, failure. Never its text.

Read are the APIs in the table of docs/providers.md, as JSON, as server-sent events, as one JSON object per line, and as
Amazon's binary event stream. Which of them a response is shows
in its objects, so a gateway may serve any of them anywhere. Only counts, and names of a strict form, leave this module.
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
"""An HTTP status, the way OpenAI and Anthropic name errors, and an exception's class, as MLflow's gateway sends it."""

_ENDED = frozenset({"completed", "incomplete", "failed", "cancelled"})
"""The states of OpenAI's Responses API that are final."""

_MODEL_NAMES = ("model", "modelVersion")
_FINISH_NAMES = ("stop_reason", "stopReason", "finish_reason", "finishReason", "done_reason")
_OWN_FINISH_NAMES = ("stop_reason", "stopReason", "finish_reason", "done_reason")
"""The finish reasons that are members of the response itself, or of the object with its counts."""

_WANTED = frozenset((*USAGE_NAMES, *TOP_LEVEL_COUNTS, *_MODEL_NAMES, *_FINISH_NAMES))

_TELLING = re.compile(
    rf'"(?:{"|".join((*USAGE_NAMES, *_FINISH_NAMES))}|error)"\s*:(?!\s*null)|"type"\s*:\s*"(?:error|response\.failed)"'
)
"""Matches the few events of a stream that say more than a piece of the answer."""


@dataclass(slots=True)
class ResponseFacts:
    """What a response says of its call; ``None`` for what it does not say.

    Attributes:
        model: The model that answered.
        usage: The tokens; ``input_tokens`` contains the cached ones whatever the provider's own way of counting.
        finish_reason: In the provider's own words.
        error_type: What failed although the HTTP status says success, as of a stream that breaks off.
        cost: What the provider itself says that it charges.
    """

    model: str | None = None
    usage: TokenUsage | None = None
    finish_reason: str | None = None
    error_type: str | None = None
    cost: Cost | None = None

    def __bool__(self) -> bool:
        return self != ResponseFacts()


LAST_CHUNKS = 4
"""Chunks of a stream that are looked at to tell whether it is complete: a server may split its last event."""

_LAST_EVENT = re.compile(
    rb"(?:\A|\n)data: ?\[DONE\]"
    rb'|(?<!\\)"type"\s*:\s*"(?:message_stop|response\.(?:completed|incomplete|failed))"'
    rb'|(?<!\\)"finishReason"\s*:'
    rb'|(?<!\\)"type"\s*:\s*"message-end"'
    rb'|(?<!\\)"done"\s*:\s*true'
    rb"|:event-type\x07\x00\x08metadata"
)
"""How streams end: OpenAI's chat, Anthropic and OpenAI's responses, Gemini, Cohere, Ollama, Bedrock. An answer that
speaks of these events is within a JSON string, where quotes are escaped and lines do not begin."""


def has_last_event(content: bytes) -> bool:
    """Tell whether a stream's last event is in there, after which its client wants no more."""
    return _LAST_EVENT.search(content) is not None


def read_response(body: KeptBody, *, streaming: bool) -> ResponseFacts:
    """Read a successful response.

    Args:
        body: What was kept of it. Bytes that make no sense are passed over.
        streaming: Whether it is a stream of events, and no JSON document.
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
    """Return the model that a JSON request asks for; ``None`` where there is none or it does not look like a name."""
    head, tail = (part.decode("utf-8", "replace") for part in body.ends())
    if body.cut:
        members = first_members(head, _MODEL_NAMES) + last_members(tail, _MODEL_NAMES)
        names = [value for depth, name, value in members if depth == 1 and name == "model"]
        return model_name(names[-1]) if names else None
    request = _parsed(head + tail)
    return model_name(request.get("model")) if isinstance(request, dict) else None


def model_name(value: Any) -> str | None:
    """Return a value if it has the form of a model's name, which no sentence has."""
    return value if isinstance(value, str) and _MODEL.match(value) else None


def reason_name(value: Any) -> str | None:
    """Return a value if it has the form of a finish reason."""
    return value if isinstance(value, str) and _FINISH_REASON.match(value) else None


def _read_stream(reading: "_Reading", head: str, tail: str | None) -> None:
    lines = _lines(head)
    if tail is None:
        for number, event in enumerate(_events(lines)):
            if number == 0 or _TELLING.search(event):
                reading.see(_parsed(event))
        return
    _read_stream(reading, head[: head.rfind("\n") + 1], None)
    # The tail may begin within an event, perhaps the large one at the end of OpenAI's responses.
    first, *lines = _lines(tail)
    reading.see_members(last_members(first, _WANTED), in_event=True)
    for event in _events(lines):
        if _TELLING.search(event):
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
    # Not splitlines(), for which other characters end a line too.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _events(lines: Iterable[str]) -> Iterator[str]:
    """Yield the data of server-sent events, and lines that are JSON objects by themselves."""
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
    # int() refuses more than 4,300 digits, and one such number must not cost all the others.
    return int(digits) if len(digits) <= 20 else None


_DECODER = json.JSONDecoder(parse_int=_int)


def _parsed(text: str) -> Any:
    try:
        # A byte order mark is allowed before a JSON text by some (RFC 8259, 8.1).
        return _DECODER.decode(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None


class _Reading:
    """Collects what the objects of a response say."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._usage: dict[str, Any] = {}
        self._finish_reason: str | None = None
        self._error_type: str | None = None

    def facts(self) -> ResponseFacts:
        usage, cost = token_usage(self._usage), reported_cost(self._usage)
        return ResponseFacts(self._model, usage, self._finish_reason, self._error_type, cost)

    def see_document(self, document: Any) -> None:
        # Gemini streams a JSON array to those who do not ask for events.
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
            # Anthropic's message_start has a first count of the output, which is of no use unless a final one follows.
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
        """Read what is left of an object that was cut."""
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
        # SGLang says more of it.
        self._see_finish_reason(reason.get("type") if isinstance(reason, dict) else reason)

    def _see_finish_reason(self, value: Any) -> None:
        self._finish_reason = reason_name(value) or self._finish_reason

    def _see_error(self, error: Any) -> None:
        said = [error.get(key) for key in ("code", "status", "type")] if isinstance(error, dict) else []
        names = [str(name) for name in said if isinstance(name, (str, int))]
        self._error_type = self._error_type or next((name for name in names if _ERROR.match(name)), "error")


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
