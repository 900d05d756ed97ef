"""The provider's OpenAI APIs, as the OpenAI SDK sees them."""

import io
import json
from typing import Any

import openai
import pydantic
import pytest

from agent_gateway_client.demo.provider import Provider

QUESTION: Any = [{"role": "user", "content": "What is the weather in Lisbon?"}]
WEATHER: Any = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}}},
}
ARGUMENTS = {"city": "Lisbon", "unit": "C"}


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


def test_chat_answers_and_counts(client: openai.OpenAI):
    """A token is a word, of the prompt and of the answer."""
    completion = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
    assert completion.choices[0].message.content == "You said: What is the weather in Lisbon?"
    assert completion.usage
    assert completion.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": 6,
        "completion_tokens": 8,
        "total_tokens": 14,
    }
    assert client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION) == completion


def test_a_stream_adds_up_to_the_answer(client: openai.OpenAI):
    """With `include_usage` the last chunk has the usage that the answer in one piece has; without, none has."""
    whole = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
    options: Any = {"model": "gpt-4o-mini", "messages": QUESTION, "stream": True}
    plain = list(client.chat.completions.create(**options))
    counted = list(client.chat.completions.create(**options, stream_options={"include_usage": True}))
    for chunks in (plain, counted):
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
    assert [chunk.usage for chunk in plain] == [None] * len(plain)
    assert [chunk.usage for chunk in counted[:-1]] == [None] * (len(counted) - 1)
    assert counted[-1].usage == whole.usage
    assert plain[-1].choices[0].finish_reason == "stop"


def test_a_cached_model_read_half_of_the_prompt_from_its_cache(client: openai.OpenAI):
    usage = client.chat.completions.create(model="gpt-4o-cached", messages=QUESTION).usage
    assert usage
    assert usage.prompt_tokens_details
    assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (6, 3)
    response = client.responses.create(model="gpt-4o-cached", input=QUESTION)
    assert response.usage
    assert response.usage.input_tokens_details.cached_tokens == 3


def test_a_tool_is_called_and_its_result_used(client: openai.OpenAI):
    tools: Any = [{"type": "function", "function": WEATHER}]
    first = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, tools=tools).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.tool_calls
    call: Any = first.message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", ARGUMENTS)
    answered: Any = [*QUESTION, first.message, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}]
    second = client.chat.completions.create(model="gpt-4o-mini", messages=answered, tools=tools).choices[0]
    assert second.message.content == "The tool says: 18 degrees"


def test_a_streamed_tool_call_adds_up(client: openai.OpenAI):
    tools: Any = [{"type": "function", "function": {**WEATHER, "strict": True}}]
    with client.chat.completions.stream(model="gpt-4o-mini", messages=QUESTION, tools=tools) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls
    assert json.loads(message.tool_calls[0].function.arguments) == ARGUMENTS


def test_parse_gets_what_it_asked_for(client: openai.OpenAI):
    parsed = client.chat.completions.parse(model="gpt-4o-mini", messages=QUESTION, response_format=Weather)
    assert parsed.choices[0].message.parsed == Weather(city="Lisbon", degrees=1)
    response = client.responses.parse(model="gpt-4o-mini", input=QUESTION, text_format=Weather)
    assert response.output_parsed == Weather(city="Lisbon", degrees=1)


def test_completions(client: openai.OpenAI):
    whole = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="one two")
    assert whole.choices[0].text == "You said: one two"
    chunks = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="one two", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_embeddings_of_several_inputs(client: openai.OpenAI):
    """The same numbers in floats and in base64, which the SDK asks for by default; token ids are one input."""
    inputs = ["one", "two words"]
    default = client.embeddings.create(model="text-embedding-3-small", input=inputs)
    floats = client.embeddings.create(model="text-embedding-3-small", input=inputs, encoding_format="float")
    assert [e.embedding for e in default.data] == [e.embedding for e in floats.data]
    assert default.data[0].embedding != default.data[1].embedding
    assert (default.usage.prompt_tokens, default.usage.total_tokens) == (3, 3)
    assert len(client.embeddings.create(model="text-embedding-3-small", input=[1, 2, 3]).data) == 1


def test_responses(client: openai.OpenAI):
    """At once, and as events in order up to response.completed, which carries the whole response."""
    whole = client.responses.create(model="gpt-4o-mini", input="one two")
    assert whole.output_text == "You said: one two"
    assert whole.usage
    assert (whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.total_tokens) == (2, 4, 6)
    events = list(client.responses.create(model="gpt-4o-mini", input="one two", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == whole.output_text
    assert last.response.usage == whole.usage


@pytest.mark.parametrize("stream", [False, True])
def test_responses_call_tools(client: openai.OpenAI, stream: bool):
    tools: Any = [{"type": "function", "strict": True, **WEATHER}]
    if stream:
        with client.responses.stream(model="gpt-4o-mini", input=QUESTION, tools=tools) as events:
            response: Any = events.get_final_response()
    else:
        response = client.responses.create(model="gpt-4o-mini", input=QUESTION, tools=tools)
    call = response.output[0]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", ARGUMENTS)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}
    # What pydantic has of a parsed call beside the API's own fields is not sent back.
    made = {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
    answer: Any = [*QUESTION, made, result]
    assert client.responses.create(model="gpt-4o-mini", input=answer, tools=tools).output_text == (
        "The tool says: 18 degrees"
    )


def test_the_smaller_apis(client: openai.OpenAI):
    assert "gpt-4o-mini" in [model.id for model in client.models.list()]
    assert [r.flagged for r in client.moderations.create(input=["one", "two"]).results] == [False, False]
    images = client.images.generate(model="gpt-image-1", prompt="a boat", n=2).data
    assert images
    assert len(images) == 2
    sound = client.audio.speech.create(model="tts-1", voice="alloy", input="hello")
    assert sound.read() == b"hello"
    text = client.audio.transcriptions.create(model="whisper-1", file=("a.mp3", b"sound"))
    assert text.text == "What was said."
    with pytest.raises(openai.InternalServerError):
        client.audio.transcriptions.create(model="fail-500", file=("a.mp3", b"sound"))


def test_files_come_in_pages(provider: Provider, client: openai.OpenAI):
    uploaded = client.files.create(file=("mine.jsonl", io.BytesIO(b"{}")), purpose="batch")
    assert uploaded.filename == "mine.jsonl"
    provider.clear()
    names = [file.filename for file in client.files.list(limit=2)]
    assert names == ["file-0.jsonl", "file-1.jsonl", "file-2.jsonl", "mine.jsonl"]
    assert [request.query for request in provider.requests] == ["limit=2", "limit=2&after=file-1"]


def test_batches(client: openai.OpenAI):
    batch = client.batches.create(input_file_id="file-0", endpoint="/v1/chat/completions", completion_window="24h")
    assert [listed.id for listed in client.batches.list()] == [batch.id]


async def test_the_async_client(provider: Provider):
    async with openai.AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "You said: What is the weather in Lisbon?"


def test_azure(provider: Provider):
    with openai.AzureOpenAI(azure_endpoint=provider.url, api_key="none", api_version="2024-10-21") as client:
        completion = client.chat.completions.create(model="my-deployment", messages=QUESTION)
    assert completion.model == "my-deployment"
    assert provider.requests[0].path == "/openai/deployments/my-deployment/chat/completions"
