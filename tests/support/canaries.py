"""Requests and answers full of canaries, and a search for them in what a gateway sends to the trace store.

Two kinds of text contain the canary. A *sentence* is never a name, whatever surrounds it, and may appear anywhere. A
*word* has the form of a name; it appears everywhere except in the few fields whose names are mirrored on purpose: the
requested model, once the gateway has served it, and the provider's model and finish reason.
"""

import gzip
import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.support.nightly import amount
from tests.support.otlp_receiver import Receiver
from tests.support.server import TRACEPARENT

CANARY = "c4n4ry7f3a"
EXAMPLES = settings(
    max_examples=amount(60, 10_000),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
"""The number of examples for each gateway; every run uses the same examples."""

_MARKS = [CANARY, CANARY.upper(), CANARY.encode("utf-16-le").decode("latin-1"), CANARY.encode().hex(), CANARY[::-1]]

sentences = st.builds(
    lambda separator, text, end: f"{CANARY}{separator}{text}{end}{CANARY}",
    st.sampled_from([" ", "\n", "\t", "\r\n", " {", '"', "\\", "\N{EM DASH}", "\N{BIRD}", "\u0430 ", ", ", "\x00"]),
    st.text(max_size=30) | st.text("abc ", max_size=400),
    st.sampled_from(["", " ", "\n"]),
)
words = st.builds(lambda end: CANARY + end, st.text("abc019._-", max_size=10))
texts = sentences | words
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, values, max_size=3)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"]) | texts, "content": values}
    ),
    max_size=3,
)


NOTES = [
    "model_group", "original_model_group", "model_group_alias", "deployment_model_name", "deployment", "api_base",
    "user_api_key_auth", "user_api_key_alias", "user_api_key_user_id", "tags", "endpoint", "endpoint_id", "trace_id",
    "session_id", "generation_name", "requester_metadata", "headers", "previous_models", "caching_groups",
]  # fmt: skip
"""Names under which gateways write to a request's metadata; a caller may send them too."""

CALL_IDS = ["litellm_call_id", "litellm_trace_id", "litellm_session_id", "litellm_logging_obj", "id", "request_id"]
NAMES = ["custom_llm_provider", "provider", "call_type", "user", "end_user", "user_id", "service_tier", "api_base"]


FIELDS = [
    "model", "custom_llm_provider", "metadata", "litellm_metadata", "tags", "user", "litellm_call_id", "litellm_params",
]  # fmt: skip
HEADERS = ["user-agent", "baggage", "tracestate", "x-litellm-call-id", "x-litellm-tags", "x-litellm-end-user-id"]
"""What a leak is planted for: members of a request's body, and headers."""

HOLDERS = ["litellm_params", "proxy_server_request", "standard_logging_object", "model_info", "extra_body"]
"""Objects in which LiteLLM keeps data of its own; a caller may send them too."""


def forged(models: Iterable[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Return metadata that imitates a gateway's, partly with names that the gateway knows."""
    names = st.sampled_from(list(models)) | texts
    notes = st.dictionaries(st.sampled_from(NOTES), names, max_size=4)
    return st.builds(lambda noted, name: {**noted, "model_info": {"id": name}}, notes, names)


class Question(NamedTuple):
    """What a caller sends besides its ``traceparent``.

    Attributes:
        query: A word for the URL's query, and one for a directory in its path.
        headers: Header lines, ``tracestate`` and ``baggage`` among them.
        body: A JSON document, or bytes that are not JSON.
    """

    query: str
    headers: list[tuple[str, str]]
    body: dict[str, Any] | bytes


def _header_value(text: str) -> str:
    return "".join(character if " " <= character <= "~" else "_" for character in text).strip()


header_values = texts.map(_header_value)
named_headers = st.sampled_from(
    [
        "user-agent",
        "cookie",
        "referer",
        "x-request-id",
        "openai-organization",
        "x-api-key",
        "forwarded",
        "from",
        "x-forwarded-host",
        "anthropic-beta",
        "openai-project",
        "x-litellm-call-id",
        "x-litellm-trace-id",
        "x-litellm-session-id",
        "x-litellm-tags",
        "x-litellm-end-user-id",
        "x-litellm-customer-id",
        "x-litellm-spend-logs-metadata",
        "x-litellm-agent-id",
        "x-litellm-model",
        "x-claude-code-session-id",
        "x-session-id",
        "session-id",
        "x-mlflow-gateway-caller",
        "x-mlflow-workspace",
    ]
)
header_lines = st.lists(
    st.tuples(named_headers, header_values)
    | st.tuples(words.map(lambda word: f"x-{word}"), header_values)
    | st.tuples(st.just("baggage"), words.map(lambda word: f"user={word}"))
    | st.tuples(st.just("host"), words.map(lambda word: f"{word.replace('_', '').strip('.')}.test:80")),
    max_size=4,
    unique_by=lambda line: line[0],
)
tracestates = st.lists(words, max_size=3, unique_by=lambda word: word.replace(".", "")).map(
    lambda found: [("tracestate", f"{word.replace('.', '')}={word}") for word in found]
)


def questions(models: Iterable[str], more: st.SearchStrategy[str] = sentences) -> st.SearchStrategy[Question]:
    """Return requests to a gateway.

    Args:
        models: Its models or endpoints.
        more: Requested instead in some of the examples.
    """
    models = list(models)
    bodies = st.fixed_dictionaries(
        {"model": st.sampled_from(models) | more, "messages": messages},
        optional={
            "stream": st.booleans(),
            "user": texts,
            "metadata": st.dictionaries(texts, texts, max_size=2),
            "stop": st.lists(texts, max_size=2),
            "tools": st.lists(objects, max_size=2),
            "prompt": values,
            "input": values,
        },
    )
    notes = forged(models)
    fields = st.fixed_dictionaries({"metadata": notes, "custom_llm_provider": texts})
    imitations = (
        st.builds(lambda name, text: {name: text}, st.sampled_from([*NAMES, *CALL_IDS]), texts)
        | st.builds(lambda name, noted: {name: noted}, st.sampled_from(["metadata", "litellm_metadata"]), notes)
        | st.builds(lambda noted: {"litellm_metadata": json.dumps(noted)}, notes)
        | st.builds(lambda name, held: {name: held}, st.sampled_from(HOLDERS), fields)
        | st.builds(lambda text: {"tags": [text]}, texts)
    )
    bodies = st.builds(lambda body, *more: {**body, **more[0], **more[1]}, bodies, imitations, imitations)
    junk = st.builds(lambda text: text.encode("utf-8", "replace"), texts)
    return st.builds(
        lambda query, lines, states, body: Question(query, [*lines, *states], body),
        words,
        header_lines,
        tracestates,
        bodies | bodies | bodies | junk,
    )


class Answer(NamedTuple):
    """A provider's answer.

    Attributes:
        status: HTTP status.
        headers: Header lines, with the content type and encoding.
        chunks: The chunks of the body.
    """

    status: int
    headers: list[tuple[str, str]]
    chunks: list[bytes]


counts = st.integers(0, 10**6) | texts | values
usages = st.dictionaries(
    st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens"]) | texts,
    counts,
    max_size=6,
)
errors = st.fixed_dictionaries({}, optional={"message": texts, "type": sentences, "code": texts, "param": texts})
choices = st.lists(
    st.fixed_dictionaries(
        {
            "index": st.just(0),
            "finish_reason": st.sampled_from(["stop", "length", None]) | sentences,
            "message": st.fixed_dictionaries({"role": st.just("assistant"), "content": texts}),
            "delta": st.fixed_dictionaries({"content": texts}),
        },
        optional={"logprobs": values, "text": texts},
    ),
    max_size=2,
)
documents = st.fixed_dictionaries(
    {"id": texts, "object": st.just("chat.completion") | texts, "choices": choices, "created": st.integers(0, 10**9)},
    optional={
        "model": st.just("model-of-the-provider") | sentences,
        "modelVersion": sentences,
        "usage": usages | texts,
        "usageMetadata": usages,
        "stop_reason": sentences,
        "error": errors | texts,
        "detail": texts,
        "type": sentences | st.sampled_from(["message", "error", "message_start", "response.completed"]),
        "response": st.fixed_dictionaries({"usage": usages, "model": sentences, "error": errors}),
        "system_fingerprint": texts,
    },
)


def _packed(answer: Answer, encoded: bool) -> Answer:
    if not encoded:
        return answer
    headers = [*answer.headers, ("content-encoding", "gzip")]
    return Answer(answer.status, headers, [gzip.compress(b"".join(answer.chunks), 1)])


json_answers = st.builds(
    lambda status, document, line: Answer(
        status, [("content-type", "application/json"), line], [json.dumps(document).encode()]
    ),
    st.sampled_from([200, 200, 200, 201, 400, 404, 422, 429, 500, 503]),
    documents | objects | errors.map(lambda error: {"error": error}),
    st.tuples(words.map(lambda word: f"x-{word}"), header_values),
)
events = st.builds(
    lambda name, document: f"{name}data: {document}\n\n".encode("utf-8", "replace"),
    st.just("") | sentences.map(lambda text: "event: " + " ".join(text.split()) + "\n"),
    (documents | errors.map(lambda error: {"error": error})).map(json.dumps) | texts | st.just("[DONE]"),
)
stream_answers = st.builds(
    lambda chunks: Answer(200, [("content-type", "text/event-stream")], chunks), st.lists(events, max_size=5)
)
junk_answers = st.builds(
    lambda status, kind, text: Answer(status, [("content-type", kind)], [text.encode("utf-8", "replace")]),
    st.sampled_from([200, 302, 400, 500]),
    st.sampled_from(["application/json", "text/event-stream", "text/html", "application/x-ndjson"]),
    texts,
)
answers = st.builds(_packed, json_answers | stream_answers | junk_answers, st.booleans())


def headers_of(question: Question) -> list[tuple[str, str]]:
    """Return a traced request's header lines; a few have a traceparent of a later version with more fields."""
    later = len(question.query) % 3 == 0
    parent = f"cc{TRACEPARENT[2:]}-{question.query}" if later else TRACEPARENT
    return [("traceparent", parent), *question.headers]


def body_of(question: Question) -> bytes:
    return question.body if isinstance(question.body, bytes) else json.dumps(question.body).encode()


class CanaryFound(AssertionError):
    """Text from a caller, a provider or an error has been sent to the trace store."""


def search(receiver: Receiver) -> int:
    """Search every byte received since the last search for the canary; return the number of mirrors.

    Raises:
        CanaryFound: The canary was found.
    """
    mirrors = 0
    while receiver.requests:
        request = receiver.requests.pop(0)
        haystack = (request.head + request.payload).decode("latin-1")
        for mark in _MARKS:
            if mark.lower() in haystack.lower():
                at = haystack.lower().index(mark.lower())
                raise CanaryFound(f"{haystack[max(0, at - 80) : at + 40]!r}")
        mirrors += sum(span.name.startswith("gateway/") for span in request.spans)
    return mirrors


class AllFound(Exception):
    """Each planted leak was found: no more examples are needed."""


LEAK = "leaked."
"""The prefix of a planted leak's attributes."""


def found_leaks(receiver: Receiver) -> set[str]:
    """Search like :func:`search`; return the planted leaks in which a canary was found."""
    spans = receiver.spans
    leaks = {
        attribute.key.removeprefix(LEAK)
        for span in spans
        for attribute in span.attributes
        if attribute.key.startswith(LEAK) and CANARY in attribute.value.string_value
    }
    try:
        search(receiver)
    except CanaryFound:
        receiver.requests.clear()
        return leaks
    assert not leaks
    return set()


def wait_and_search(receiver: Receiver, count: int, wait_for: Callable[[str, Callable[[], Any]], Any]) -> None:
    """Search until this many mirrors have arrived."""
    found = 0

    def all_came() -> bool:
        nonlocal found
        found += search(receiver)
        return found >= count

    wait_for(f"{count} mirrors", all_came)
