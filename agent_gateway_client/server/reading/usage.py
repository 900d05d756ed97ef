"""Reads the tokens and the cost that a provider reports; docs/providers.md lists the names by provider."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent_gateway_client.server.call import Cost, TokenUsage

MAX_TOKENS = 2**53
"""Larger counts are ignored. It is the largest integer that every reader of JSON and OTLP accepts."""

MAX_COST = 1e9
"""Larger costs, in USD, are ignored."""

USAGE_NAMES = ("usage", "usageMetadata", "meta", "meta_info", "details", "amazon-bedrock-invocationMetrics")
"""The members of a response that have counts. Their other members are ignored."""

TOP_LEVEL_COUNTS = ("prompt_eval_count", "prompt_eval_cached_count", "eval_count")
"""Ollama's counts, which are members of the response itself."""

_TICKS_OF_A_DOLLAR = 10**10
"""The unit of the cost that xAI reports."""

Usage = Mapping[str, Any]


def token_usage(usage: Usage) -> TokenUsage | None:
    """Return the tokens that a provider reports; ``None`` if it reports none.

    Args:
        usage: The provider's values; of a stream, the last value of each name.
    """
    if "promptTokenCount" in usage or "totalTokenCount" in usage:
        result = _gemini(usage)
    elif "inputTokens" in usage or "outputTokens" in usage:
        result = _converse(usage)
    elif _SHARED_NAMES & usage.keys():
        result = _openai_or_anthropic(usage)
    elif "inputTokenCount" in usage or "outputTokenCount" in usage:
        result = _bedrock_invocation(usage)
    elif "tokens" in usage or "billed_units" in usage:
        result = _cohere(usage)
    else:
        result = _model_server(usage)
    if result.total_tokens is None and result.input_tokens is not None and result.output_tokens is not None:
        result = replace(result, total_tokens=result.input_tokens + result.output_tokens)
    return None if result == TokenUsage() else result


def reported_cost(usage: Usage) -> Cost | None:
    """Return the cost that a provider reports itself, in USD; ``None`` if it reports none."""
    cost = usage.get("cost")
    if isinstance(cost, dict):
        # Perplexity.
        if cost.get("currency", "USD") != "USD":
            return None
        parts = _amount(cost, "input_tokens_cost", "input_cost"), _amount(cost, "output_tokens_cost", "output_cost")
        total = _amount(cost, "total_cost")
        return None if total is None else Cost(*parts, total)
    total = _amount(usage, "cost", "estimated_cost")
    if (ticks := _count(usage, "cost_in_usd_ticks")) is not None:
        total = ticks / _TICKS_OF_A_DOLLAR
    elif total is not None and usage.get("is_byok") is True:
        # This is OpenRouter's fee; the model's provider charges the rest.
        total += _amount(_object(usage, "cost_details"), "upstream_inference_cost") or 0.0
    return None if total is None else Cost(None, None, total)


_SHARED_NAMES = {"prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens"}
"""The names of OpenAI, Anthropic, and nearly all providers with a compatible API."""


def _openai_or_anthropic(usage: Usage) -> TokenUsage:
    input_tokens = _count(usage, "prompt_tokens", "input_tokens")
    output_tokens = _count(usage, "completion_tokens", "output_tokens")
    total = _count(usage, "total_tokens", "totalTokenCount")
    read = _count(usage, "cache_read_input_tokens", "prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens")
    created = _count(usage, "cache_creation_input_tokens")
    by_lifetime = _object(usage, "cache_creation")
    if created is None and by_lifetime:
        created = _sum(_count(by_lifetime, "ephemeral_5m_input_tokens"), _count(by_lifetime, _ONE_HOUR))
    # OpenAI's Realtime API leaves the s out.
    details = _object(usage, "prompt_tokens_details", "input_tokens_details", "input_token_details")
    if details:
        read = _count(details, "cached_tokens", "cache_read_input_tokens") if read is None else read
        created = _count(details, "cache_write_tokens", "cache_creation_input_tokens") if created is None else created
        by_lifetime = by_lifetime or _object(details, "cache_creation_token_details")
    elif "input_tokens" in usage and total is None:
        # Anthropic's input_tokens excludes cache reads and writes. OpenTelemetry's includes them, and so do the counts
        # of MLflow's own gateway (gateway/providers/anthropic.py).
        input_tokens = _sum(input_tokens, read, created)
    written = _object(usage, "completion_tokens_details", "output_tokens_details", "output_token_details")
    thoughts = _count(written, "reasoning_tokens", "thinking_tokens")
    thoughts = _count(usage, "reasoning_tokens") if thoughts is None else thoughts
    if thoughts and output_tokens is not None:
        if _sum(input_tokens, output_tokens, thoughts) == total:
            # xAI's completion_tokens excludes reasoning, OpenAI's includes it; the total tells which.
            output_tokens += thoughts
        elif thoughts > output_tokens:
            # DeepInfra's Gemini models exclude it from both.
            if total is not None and total == _sum(input_tokens, output_tokens):
                total += thoughts
            output_tokens += thoughts
    return TokenUsage(input_tokens, output_tokens, total, read, created, thoughts, _count(by_lifetime, _ONE_HOUR))


_ONE_HOUR = "ephemeral_1h_input_tokens"


def _gemini(usage: Usage) -> TokenUsage:
    # Gemini counts thoughts and tool use separately; the total is the sum.
    thoughts = _count(usage, "thoughtsTokenCount")
    return TokenUsage(
        _sum(_count(usage, "promptTokenCount"), _count(usage, "toolUsePromptTokenCount")),
        _sum(_count(usage, "candidatesTokenCount", "responseTokenCount"), thoughts),
        _count(usage, "total_tokens", "totalTokenCount"),
        _count(usage, "cachedContentTokenCount"),
        None,
        thoughts,
    )


def _converse(usage: Usage) -> TokenUsage:
    # Bedrock's inputTokens excludes cache reads and writes.
    read, written = _count(usage, "cacheReadInputTokens"), _count(usage, "cacheWriteInputTokens")
    input_tokens = _sum(_count(usage, "inputTokens"), read, written)
    by_lifetime = usage.get("cacheDetails")
    for_one_hour = [
        _count(one, "inputTokens")
        for one in (by_lifetime if isinstance(by_lifetime, list) else ())
        if isinstance(one, dict) and one.get("ttl") == "1h"
    ]
    return TokenUsage(
        input_tokens,
        _count(usage, "outputTokens"),
        None,
        read,
        written,
        cache_creation_input_tokens_above_1hr=_sum(*for_one_hour),
    )


def _bedrock_invocation(usage: Usage) -> TokenUsage:
    read, written = _count(usage, "cacheReadInputTokenCount"), _count(usage, "cacheWriteInputTokenCount")
    input_tokens = _sum(_count(usage, "inputTokenCount"), read, written)
    return TokenUsage(input_tokens, _count(usage, "outputTokenCount"), None, read, written)


def _cohere(usage: Usage) -> TokenUsage:
    # The billed units exclude what Cohere adds to the prompt.
    counts = _object(usage, "tokens") or _object(usage, "billed_units")
    return TokenUsage(
        _count(counts, "input_tokens"), _count(counts, "output_tokens"), None, _count(usage, "cached_tokens")
    )


def _model_server(usage: Usage) -> TokenUsage:
    # Ollama; Text Generation Inference; watsonx.ai.
    return TokenUsage(
        _count(usage, "prompt_eval_count", "input_length", "input_token_count"),
        _count(usage, "eval_count", "generated_tokens", "generated_token_count"),
        None,
        _count(usage, "prompt_eval_cached_count"),
    )


def _count(usage: Usage, *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        if type(value) is int and 0 <= value <= MAX_TOKENS:
            return value
    return None


def _amount(usage: Usage, *names: str) -> float | None:
    for name in names:
        value = usage.get(name)
        if isinstance(value, (int, float)) and type(value) is not bool and 0 <= value <= MAX_COST:
            return float(value)
    return None


def _object(usage: Usage, *names: str) -> Usage:
    return next((value for name in names if isinstance(value := usage.get(name), dict)), {})


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
