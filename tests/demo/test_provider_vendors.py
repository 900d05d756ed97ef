"""The provider's Anthropic, Gemini and Cohere APIs, as they are on the wire."""

import json
from typing import Any

import httpx

QUESTION: Any = {"role": "user", "content": "Weather in Lisbon"}
CITY: Any = {"type": "object", "properties": {"city": {"type": "string"}}}


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


def messages(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/messages", json={"model": "claude-x", "max_tokens": 9, "messages": [QUESTION], **body})


def test_anthropic_answers_and_counts(http: httpx.Client):
    message = messages(http).json()
    assert message["content"] == [{"type": "text", "text": "You said: Weather in Lisbon"}]
    assert message["stop_reason"] == "end_turn"
    assert message["usage"] == {"input_tokens": 3, "output_tokens": 5}


def test_anthropic_leaves_cached_tokens_out_of_the_input_tokens(http: httpx.Client):
    usage = messages(http, model="claude-cached", system="Be brief").json()["usage"]
    assert usage == {
        "input_tokens": 3,
        "output_tokens": 5,
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 0,
    }


def test_anthropic_streams_events_in_order(http: httpx.Client):
    response = messages(http, stream=True)
    events = events_of(response)
    kinds = [event["type"] for event in events]
    assert kinds == [line[7:] for line in response.text.splitlines() if line.startswith("event: ")]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
    assert text == "You said: Weather in Lisbon"
    assert events[0]["message"]["usage"]["input_tokens"] == 3
    assert events[-2]["usage"] == {"input_tokens": 3, "output_tokens": 5}


def test_anthropic_uses_tools(http: httpx.Client):
    """At once and streamed; after the tool's result it answers in text."""
    tools = [{"name": "weather", "input_schema": CITY}]
    message = messages(http, tools=tools).json()
    call = message["content"][0]
    assert (message["stop_reason"], call["type"], call["input"]) == ("tool_use", "tool_use", {"city": "Lisbon"})
    events = events_of(messages(http, tools=tools, stream=True))
    parts = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta"]
    assert json.loads("".join(parts)) == {"city": "Lisbon"}
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "18 degrees"}
    turns = [QUESTION, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    answer = messages(http, tools=tools, messages=turns).json()
    assert answer["content"] == [{"type": "text", "text": "The tool says: 18 degrees"}]


def generate(http: httpx.Client, method: str, *, model: str = "gemini-x", **body: Any) -> httpx.Response:
    contents = [{"role": "user", "parts": [{"text": "Weather in Lisbon"}]}]
    return http.post(f"/v1beta/models/{model}:{method}", json={"contents": contents, **body})


def test_gemini_answers_and_counts(http: httpx.Client):
    answer = generate(http, "generateContent", model="gemini-cached").json()
    assert answer["candidates"][0]["content"]["parts"] == [{"text": "You said: Weather in Lisbon"}]
    assert answer["usageMetadata"] == {
        "promptTokenCount": 3,
        "candidatesTokenCount": 5,
        "totalTokenCount": 8,
        "cachedContentTokenCount": 1,
    }


def test_gemini_streams(http: httpx.Client):
    """The pieces add up to the answer, and the usage is in the last one."""
    events = events_of(generate(http, "streamGenerateContent"))
    text = "".join(e["candidates"][0]["content"]["parts"][0]["text"] for e in events)
    assert text == "You said: Weather in Lisbon"
    assert ["usageMetadata" in event for event in events] == [False] * (len(events) - 1) + [True]


def test_gemini_calls_functions(http: httpx.Client):
    tools = [{"functionDeclarations": [{"name": "weather", "parameters": CITY}]}]
    part = generate(http, "generateContent", tools=tools).json()["candidates"][0]["content"]["parts"][0]
    assert part == {"functionCall": {"name": "weather", "args": {"city": "Lisbon"}}}
    contents = [{"parts": [{"functionResponse": {"name": "weather", "response": {"result": "18 degrees"}}}]}]
    answer = generate(http, "generateContent", tools=tools, contents=contents).json()
    assert answer["candidates"][0]["content"]["parts"] == [{"text": "The tool says: 18 degrees"}]


def test_cohere_ranks_documents_best_first(http: httpx.Client):
    """By the words that they share with the query; an error is Cohere's own."""
    body = {
        "model": "rerank-v3.5",
        "query": "weather in Lisbon",
        "documents": ["fish", "Lisbon", "the weather in Lisbon"],
    }
    answer = http.post("/v2/rerank", json={**body, "top_n": 2}).json()
    assert [(result["index"], round(result["relevance_score"], 2)) for result in answer["results"]] == [
        (2, 1),
        (1, 0.33),
    ]
    failed = http.post("/v2/rerank", json={**body, "model": "rerank-fail-429"})
    assert failed.status_code == 429
    assert failed.json()["message"].endswith("weather in Lisbon")
