"""What a response says of the call that it answers: model, tokens, finish reason, failure. Never its text.

Read are OpenAI's chat completions, completions, responses and embeddings, Anthropic's messages and Gemini's
``generateContent``, as JSON, as server-sent events, and as one JSON object per line. Which of them a response is shows
in its objects, so a gateway may serve any of them anywhere. Only counts, and names of a strict form, leave this module.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from agent_gateway_client.server.call import TokenUsage
from agent_gateway_client.server.reading.bodies import KeptBody
from agent_gateway_client.server.reading.json_ends import first_members, last_members

MAX_TOKENS = 2**53
"""Counts beyond this are no counts; it is also the largest that every JSON and OTLP reader takes."""

_MODEL = re.compile(r"[A-Za-z0-9._:/@-]{1,200}\Z")
_FINISH_REASON = re.compile(r"[A-Za-z_]{1,40}\Z")
_ERROR = re.compile(
    r"[45]\d\d\Z|(?:[a-z]{1,20}_){1,4}(?:error|exceeded|filter|quota)\Z|[A-Z][A-Za-z]{0,40}(?:Error|Exception|Timeout)\Z"
)
"""An HTTP status, the way OpenAI and Anthropic name errors, and an exception's class, as MLflow's gateway sends it."""

_ENDED = frozenset({"completed", "incomplete", "failed", "cancelled"})
"""The states of OpenAI's Responses API that are final."""

_USAGE_NAMES = ("usage", "usageMetadata")
_MODEL_NAMES = ("model", "modelVersion")
_FINISH_NAMES = ("stop_reason", "stopReason", "finish_reason", "finishReason")
_WANTED = frozenset((*_USAGE_NAMES, *_MODEL_NAMES, *_FINISH_NAMES))

_TELLING = re.compile(
    rf'"(?:{"|".join((*_USAGE_NAMES, *_FINISH_NAMES))}|error)"\s*:(?!\s*null)|"type"\s*:\s*"(?:error|response\.failed)"'
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
    """

    model: str | None = None
    usage: TokenUsage | None = None
    finish_reason: str | None = None
    error_type: str | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.model, self.usage, self.finish_reason, self.error_type))


LAST_CHUNKS = 4
"""Chunks of a stream that are looked at to tell whether it is complete: a server may split its last event."""

_LAST_EVENT = re.compile(
    rb"(?:\A|\n)data: ?\[DONE\]"
    rb'|(?<!\\)"type"\s*:\s*"(?:message_stop|response\.(?:completed|incomplete|failed))"'
    rb'|(?<!\\)"finishReason"\s*:'
)
"""How the streams of OpenAI's chat, Anthropic and OpenAI's responses, and Gemini end. An answer that speaks of these
events is within a JSON string, where quotes are escaped and lines do not begin."""


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
        return ResponseFacts(self._model, _token_usage(self._usage), self._finish_reason, self._error_type)

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
        for name in _USAGE_NAMES:
            if isinstance(usage := part.get(name), dict):
                self._usage.update((key, count) for key, count in usage.items() if count is not None)
        self._see_finish_reason(part.get("stop_reason"))
        self._see_finish_reason(part.get("stopReason"))
        for choice in (*_objects(part.get("choices")), *_objects(part.get("candidates"))):
            self._see_finish_reason(choice.get("finish_reason"))
            self._see_finish_reason(choice.get("finishReason"))
        if part.get("object") == "response" and part.get("status") in _ENDED:
            details = part.get("incomplete_details")
            self._see_finish_reason(part["status"])
            self._see_finish_reason(details.get("reason") if isinstance(details, dict) else None)
        if part.get("error"):
            self._see_error(part["error"])

    def _see_finish_reason(self, value: Any) -> None:
        self._finish_reason = reason_name(value) or self._finish_reason

    def _see_error(self, error: Any) -> None:
        said = [error.get(key) for key in ("code", "status", "type")] if isinstance(error, dict) else []
        names = [str(name) for name in said if isinstance(name, (str, int))]
        self._error_type = self._error_type or next((name for name in names if _ERROR.match(name)), "error")


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _token_usage(usage: dict[str, Any]) -> TokenUsage | None:
    """Return the tokens of a provider's usage object; docs/providers.md says what is read where."""
    if "promptTokenCount" in usage or "totalTokenCount" in usage:
        result = _gemini_usage(usage)
    elif "inputTokens" in usage or "outputTokens" in usage:
        result = _converse_usage(usage)
    else:
        result = _openai_or_anthropic_usage(usage)
    if result.total_tokens is None and result.input_tokens is not None and result.output_tokens is not None:
        result = replace(result, total_tokens=result.input_tokens + result.output_tokens)
    return None if result == TokenUsage() else result


def _gemini_usage(usage: dict[str, Any]) -> TokenUsage:
    # Gemini counts thoughts and the use of tools apart, and their sum is the total.
    return TokenUsage(
        _sum(_count(usage, "promptTokenCount"), _count(usage, "toolUsePromptTokenCount")),
        _sum(_count(usage, "candidatesTokenCount"), _count(usage, "thoughtsTokenCount")),
        _count(usage, "total_tokens", "totalTokenCount"),
        _count(usage, "cachedContentTokenCount"),
    )


def _converse_usage(usage: dict[str, Any]) -> TokenUsage:
    # Bedrock's inputTokens leaves out what the cache read and wrote.
    read, written = _count(usage, "cacheReadInputTokens"), _count(usage, "cacheWriteInputTokens")
    input_tokens = _sum(_count(usage, "inputTokens"), read, written)
    return TokenUsage(input_tokens, _count(usage, "outputTokens"), None, read, written)


def _openai_or_anthropic_usage(usage: dict[str, Any]) -> TokenUsage:
    input_tokens = _count(usage, "prompt_tokens", "input_tokens")
    output_tokens = _count(usage, "completion_tokens", "output_tokens")
    total = _count(usage, "total_tokens", "totalTokenCount")
    read = _count(usage, "cache_read_input_tokens", "prompt_cache_hit_tokens")
    created = _count(usage, "cache_creation_input_tokens")
    details = usage.get("prompt_tokens_details", usage.get("input_tokens_details"))
    if isinstance(details, dict):
        read = _count(details, "cached_tokens") if read is None else read
    elif "input_tokens" in usage and total is None:
        # Anthropic's input_tokens leaves out what the cache read and wrote. OpenTelemetry's has it in, and so has
        # what MLflow's own gateway makes of it (gateway/providers/anthropic.py).
        input_tokens = _sum(input_tokens, read, created)
    reasoning = usage.get("completion_tokens_details")
    thoughts = _count(reasoning, "reasoning_tokens") if isinstance(reasoning, dict) else None
    if thoughts and output_tokens is not None and _sum(input_tokens, output_tokens, thoughts) == total:
        # xAI counts reasoning beside completion_tokens, OpenAI within; the total tells which.
        output_tokens += thoughts
    return TokenUsage(input_tokens, output_tokens, total, read, created)


def _count(usage: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        if type(value) is int and 0 <= value <= MAX_TOKENS:
            return value
    return None


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
