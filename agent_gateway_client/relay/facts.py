"""Reads the facts of an attempt or a model server's run from a span's attributes: numbers, flags and names.

A text is accepted only if it has the form of a name, which no sentence has.
"""

import json
import math
import re
from typing import Any, TypeVar

from agent_gateway_client.relay.dialects import FASTAPI_SCOPE, Dialect
from agent_gateway_client.relay.spans import IncomingSpan
from agent_gateway_client.server.call import (
    CLIENT_DISCONNECT,
    Attempt,
    Cost,
    EngineRun,
    Operation,
    TokenUsage,
)

_NAME = re.compile(r"[A-Za-z0-9._:/@+*-]{1,200}\Z")
_ERROR = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,99}\Z")
_REASON = re.compile(r"[A-Za-z_]{1,40}\Z")
_STATUS = re.compile(r"[1-5][0-9]{2}\Z")
_UNNAMED_FAILURE = "_OTHER"
_MAX_COUNT = 1 << 53
_MAX_SECONDS = 7 * 24 * 3600.0
_MAX_COST = 1e6

_OPERATIONS: dict[str, Operation] = {
    "chat": "chat",
    "chat_model": "chat",
    "acompletion": "chat",
    "anthropic_messages": "chat",
    "responses": "chat",
    "aresponses": "chat",
    "completion": "text_completion",
    "text_completion": "text_completion",
    "atext_completion": "text_completion",
    "embedding": "embeddings",
    "embeddings": "embeddings",
    "aembedding": "embeddings",
    "generate_content": "generate_content",
    "agenerate_content": "generate_content",
}
"""The dialects' names of operations, in lower case."""

_T = TypeVar("_T")


class Facts:
    """The facts that a span reports in a dialect.

    Args:
        span: The span.
        dialect: The table of its attribute names.
    """

    def __init__(self, span: IncomingSpan, dialect: Dialect) -> None:
        self._span = span
        self._dialect = dialect

    def value(self, fact: str) -> Any:
        """Return a fact as it was sent, from the first attribute that is present."""
        attributes = self._span.attributes
        for key in self._dialect.keys.get(fact, ()):
            if (value := attributes.get(key)) is not None and value != "":
                return value
        return None

    def name(self, fact: str) -> str | None:
        """Return the name of a provider, model, endpoint or route."""
        value = self.value(fact)
        # MLflow's values are JSON.
        return _name(_parsed(value) if isinstance(value, str) and value.startswith('"') else value)

    def count(self, fact: str) -> int | None:
        """Return a number of tokens or a port; some gateways send numbers as text."""
        return _count(self.value(fact))

    def amount(self, fact: str) -> float | None:
        """Return a cost in USD."""
        return _number(self.value(fact), _MAX_COST)

    def seconds(self, fact: str) -> float | None:
        """Return a duration in seconds."""
        return _number(self.value(fact), _MAX_SECONDS)

    def flag(self, fact: str) -> bool | None:
        """Return a flag; some gateways send it as text."""
        value = self.value(fact)
        return {"true": True, "false": False}.get(str(value).lower())

    def object(self, fact: str) -> dict[str, Any]:
        """Return an object that was sent as JSON, as MLflow does; empty if it is not one."""
        return _object(self.value(fact))

    @property
    def operation(self) -> Operation:
        """The operation that was requested."""
        return _OPERATIONS.get(str(self.value("operation")).strip('"').lower(), "other")

    @property
    def http_status(self) -> int | None:
        """The HTTP status; ``None`` if the value is not one."""
        value = self.value("http_status")
        return int(value) if _STATUS.match(str(value)) else None

    @property
    def error_type(self) -> str | None:
        """Why the span failed: the HTTP status if there is one, otherwise a class; ``None`` if it succeeded."""
        status = self.http_status
        if status is not None and status >= 400:
            return str(status)
        kind = self.value("error_type")
        if not self._span.failed:
            return None
        if self._span.scope == FASTAPI_SCOPE and kind == "ConnectionError":
            # FastAPI reports a client disconnect like this. Other exceptions have their module's name in front.
            return CLIENT_DISCONNECT
        return kind if isinstance(kind, str) and (_ERROR.match(kind) or _STATUS.match(kind)) else _UNNAMED_FAILURE

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped; the first reason if there are several answers."""
        value = self.value("finish_reason")
        if isinstance(value, str) and value.startswith("["):
            reasons = _parsed(value)
            value = reasons[0] if isinstance(reasons, list) and reasons else None
        return value if isinstance(value, str) and _REASON.match(value) else None

    @property
    def usage(self) -> TokenUsage | None:
        """The tokens; ``None`` if no count is known, or the call failed and reports zero or an estimate."""
        if self._span.failed and self._dialect.estimates_failures:
            return None
        usage = self.object("usage")
        counts = {name: _first(_count(usage.get(name)), self.count(name)) for name in TokenUsage.__slots__}
        if self._span.failed and not any(counts.values()):
            return None
        return TokenUsage(**counts) if any(count is not None for count in counts.values()) else None

    @property
    def cost(self) -> Cost | None:
        """The cost; ``None`` if the total is not known, or the call failed and it is zero or an estimate."""
        told = self.object("cost")
        amounts = {name: _first(_number(told.get(name), _MAX_COST), self.amount(name)) for name in _COSTS}
        total = amounts["total_cost"]
        if total is None or (self._span.failed and (not total or self._dialect.estimates_failures)):
            return None
        return Cost(amounts["input_cost"], amounts["output_cost"], total)


_COSTS = ("input_cost", "output_cost", "total_cost")


def attempt_of(span: IncomingSpan, facts: Facts, span_id: int) -> Attempt:
    """Return the attempt that a span describes."""
    provider, model = facts.name("provider"), facts.name("model")
    if model and "/" in model:
        prefix, _, rest = model.partition("/")
        # LiteLLM prefixes a deployment's model with the provider.
        if provider in (None, prefix) and facts.value("request_type") is not None:
            provider, model = prefix, rest
    response_model = facts.name("response_model")
    if response_model == facts.name("endpoint") != model:
        # LiteLLM Proxy puts the name that its caller asked for into the answer.
        response_model = None
    return Attempt(
        provider=provider,
        model=model,
        start_time_ns=span.start_ns,
        end_time_ns=max(span.start_ns, span.end_ns),
        error_type=facts.error_type,
        usage=facts.usage,
        cost=facts.cost,
        finish_reason=facts.finish_reason,
        response_model=response_model,
        span_id=span_id,
    )


def engine_run_of(span: IncomingSpan, facts: Facts, parent_id: int) -> EngineRun:
    """Return the run that a model server's span describes."""
    return EngineRun(
        parent_span_id=parent_id,
        model=facts.name("model") or _name(span.resource.model),
        queue_seconds=facts.seconds("queue_seconds"),
        prefill_seconds=facts.seconds("prefill_seconds"),
        decode_seconds=facts.seconds("decode_seconds"),
        first_token_seconds=facts.seconds("first_token_seconds"),
        start_time_ns=span.start_ns,
        end_time_ns=max(span.start_ns, span.end_ns),
        error_type=facts.error_type,
        span_id=span.span_id,
    )


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and _NAME.match(value) else None


def _first(one: _T | None, other: _T | None) -> _T | None:
    return other if one is None else one


def _count(value: Any) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < 17:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT else None


def _number(value: Any, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and 0 <= value <= most else None


def _object(value: Any) -> dict[str, Any]:
    parsed = _parsed(value) if isinstance(value, str) else None
    return parsed if isinstance(parsed, dict) else {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
