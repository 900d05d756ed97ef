"""behaviour.py: what a model name says, and answers that are the same each time."""

from typing import Any

import pytest

from agent_gateway_client.demo.behaviour import Behaviour, arguments_for, count_tokens


@pytest.mark.parametrize(
    ("model", "behaviour"),
    [
        ("gpt-4o-mini", Behaviour()),
        ("fail-429", Behaviour(status=429)),
        ("gpt-4o-fail-503", Behaviour(status=503)),
        ("fail", Behaviour(status=500)),
        ("slow", Behaviour(delay_ms=1500)),
        ("openai/gpt-4o-slow-20", Behaviour(delay_ms=20)),
        ("gpt-4o-mini-broken", Behaviour(broken=True)),
        ("long", Behaviour(pieces=100)),
        ("long-7-broken", Behaviour(pieces=7, broken=True)),
        ("cached-slow-5-fail-401", Behaviour(status=401, delay_ms=5, cached=True)),
        ("gpt-4o-failsafe", Behaviour()),
        ("slowpoke", Behaviour()),
        ("furlong-1", Behaviour()),
    ],
)
def test_the_name_says_how_a_model_behaves(model: str, behaviour: Behaviour):
    assert Behaviour.of(model) == behaviour


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "Lisbon"),
        ({"type": "string", "enum": ["C", "F"]}, "C"),
        ({"type": "string", "const": "x"}, "x"),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "number"}, 1),
        ({"type": "boolean"}, True),
        ({"type": ["null", "integer"]}, 1),
        ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, True),
        ({"type": "array", "items": {"type": "string", "default": "d"}}, ["d"]),
        ({"type": "object", "properties": {"a": {"properties": {"b": {"type": "null"}}}}}, {"a": {"b": None}}),
        ({"$defs": {"T": {"type": "integer"}}, "properties": {"t": {"$ref": "#/$defs/T"}}}, {"t": 1}),
    ],
)
def test_arguments_satisfy_the_schema(schema: dict[str, Any], value: object):
    assert arguments_for(schema, "What is the weather in Lisbon?") == value


def test_tokens_are_the_words_of_the_text():
    """Roles, names and ids are not text; nothing at all still is one token."""
    message = {"role": "user", "content": [{"type": "text", "text": "one two"}, {"type": "text", "text": "three"}]}
    assert count_tokens([message, {"role": "tool", "tool_call_id": "call 1", "content": "four"}]) == 4
    assert count_tokens("") == 1
