"""The local model provider's answers: deterministic text, tool arguments and token counts.

The model's name defines its behaviour. Its parts are separated by ``-``, ``_``, ``.``, ``:`` or ``/``:

- ``fail-503``: answers every request with that HTTP status; the error message repeats the prompt.
- ``slow`` (1500 ms) and ``slow-200`` (200 ms): waits before it answers.
- ``broken``: breaks off a stream in the middle and closes the connection.
- ``long`` (100 pieces) and ``long-400``: streams that many pieces, one every 50 ms.
- ``cached``: reports half of the prompt tokens as read from the cache.

A model with any other name, such as ``gpt-4o-mini``, works normally.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_DELAY_MS = 1500
DEFAULT_LONG_PIECES = 100
LONG_PIECE_INTERVAL_S = 0.05


class ProviderStreamBroken(Exception):
    """Raised inside a streamed answer of a ``broken`` model; the server then closes the connection."""


@dataclass(frozen=True)
class Behaviour:
    """How a model behaves, read from its name.

    Attributes:
        status: HTTP status to fail with, or None.
        delay_ms: Milliseconds to wait before answering.
        broken: Whether a stream is cut off in the middle.
        pieces: Number of pieces of a long stream, or None for one piece per word.
        cached: Whether half of the prompt tokens are reported as cached.
    """

    status: int | None = None
    delay_ms: int = 0
    broken: bool = False
    pieces: int | None = None
    cached: bool = False

    @classmethod
    def of(cls, model: str) -> Behaviour:
        """Read the behaviour from a model name."""
        status = _part(model, "fail", default=500)
        return cls(
            status=status,
            delay_ms=_part(model, "slow", default=DEFAULT_DELAY_MS) or 0,
            broken=_part(model, "broken", default=1) is not None,
            pieces=_part(model, "long", default=DEFAULT_LONG_PIECES),
            cached=_part(model, "cached", default=1) is not None,
        )

    def cached_tokens(self, prompt_tokens: int) -> int:
        """Return the number of prompt tokens to report as read from the cache."""
        return prompt_tokens // 2 if self.cached else 0

    def split(self, text: str) -> list[str]:
        """Split an answer into the pieces of a stream."""
        words = re.findall(r"\S+\s*", text) or [""]
        if self.pieces is None:
            return words
        return [f"{words[i % len(words)].rstrip()} " for i in range(self.pieces)]


def _part(model: str, name: str, *, default: int) -> int | None:
    match = re.search(rf"(?:^|[-_.:/]){name}(?:-(\d+))?(?=$|[-_.:/])", model)
    if match is None:
        return None
    return int(match[1]) if match[1] else default


def count_tokens(value: Any) -> int:
    """Count the words of all texts in a JSON value; at least 1.

    Keys, and values of ``role``, ``type``, ``id`` and the like, do not count.
    """
    return max(1, sum(len(text.split()) for text in _texts(value)))


_NOT_TEXT = frozenset({"role", "type", "id", "call_id", "tool_call_id", "tool_use_id", "name", "status"})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _NOT_TEXT:
                yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def text_of(content: Any) -> str:
    """Join the texts of a message's content, in the form of any API."""
    return " ".join(_texts(content))


def arguments_for(schema: Mapping[str, Any], prompt: str) -> Any:
    """Return a value that satisfies a JSON schema; deterministic for a schema and a prompt.

    Strings without a predefined value are the last word of the prompt.

    Args:
        schema: JSON schema of a tool's parameters or of a structured answer. Supports local ``$ref``,
            ``anyOf``, ``const``, ``enum``, ``default`` and ``examples``.
        prompt: The user's text.
    """
    words = re.findall(r"[\w-]+", prompt)
    return _value(schema, schema, words[-1] if words else "nothing")


def _value(schema: Mapping[str, Any], root: Mapping[str, Any], word: str) -> Any:
    if ref := schema.get("$ref"):
        target: Any = root
        for key in str(ref).removeprefix("#/").split("/"):
            target = target[key]
        return _value(target, root, word)
    if "const" in schema:
        return schema["const"]
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    if "default" in schema:
        return schema["default"]
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return _value(next((c for c in choices if c.get("type") != "null"), choices[0]), root, word)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    if kind == "object":
        return {name: _value(sub, root, word) for name, sub in schema.get("properties", {}).items()}
    if kind == "array":
        return [_value(schema.get("items", {}), root, word)]
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    return {"boolean": True, "null": None}.get(kind, word)


def as_json(value: Any) -> str:
    """Encode a value as compact JSON."""
    return json.dumps(value, separators=(",", ":"))
