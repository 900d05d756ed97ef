"""Real providers' answers, written by us after their API references, and the facts that are read from them.

docs/providers.md shows the same table; a test compares the two. The date is the day on which the source was read: the
provider's reference, its SDK's, or a copy of its schema.
"""

import base64
import json
import struct
import zlib
from dataclasses import replace
from typing import Any, NamedTuple

from agent_gateway_client.server.call import Cost, TokenUsage

READ = "2026-11-28"
READ_LATER = "2026-11-29"


class Row(NamedTuple):
    """A provider's API.

    Attributes:
        name: The provider, and the API if it has several.
        body: The body of its answer.
        facts: The facts that are read: tokens, cost, finish reason.
        reads: The fields with the counts, as in the table: input, output, cached, written to the cache, cost.
        source: The reference's URL.
        as_of: When it was read.
        streaming: Whether the body is a stream.
    """

    name: str
    body: bytes
    usage: TokenUsage
    finish_reason: str | None
    reads: tuple[str, str, str, str, str]
    source: str
    as_of: str
    cost: Cost | None = None
    streaming: bool = False


def document(**members: Any) -> bytes:
    return json.dumps(members).encode()


def chat(usage: dict[str, Any], **more: Any) -> bytes:
    """Return a chat completion."""
    choices = [{"index": 0, "message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}]
    return document(id="c", object="chat.completion", model="m", choices=choices, usage=usage, **more)


def events(*data: Any, end: str = "") -> bytes:
    """Return server-sent events."""
    return ("".join(f"data: {json.dumps(one)}\n\n" for one in data) + end).encode()


def lines(*data: Any) -> bytes:
    """Return one JSON object per line."""
    return "".join(json.dumps(one) + "\n" for one in data).encode()


def message(kind: str, payload: Any, category: str = "event") -> bytes:
    """Return a message of Amazon's event stream."""
    named = {f":{category}-type": kind, ":content-type": "application/json", ":message-type": category}
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in named.items()
    )
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + body
    return whole + struct.pack(">I", zlib.crc32(whole))


def wrapped(event: Any) -> bytes:
    """Return a model's event as sent by Bedrock's InvokeModelWithResponseStream."""
    return message("chunk", {"bytes": base64.b64encode(json.dumps(event).encode()).decode()})


_OPENAI = ("`prompt_tokens`", "`completion_tokens`", "`prompt_tokens_details.cached_tokens`", "", "")
_PLAIN = ("`prompt_tokens`", "`completion_tokens`", "", "", "")
_ANTHROPIC_READS = (
    "`input_tokens` + cached + written",
    "`output_tokens`",
    "`cache_read_input_tokens`",
    "`cache_creation_input_tokens`, or the sum of `cache_creation`",
    "",
)
CLAUDE_USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 40,
    "cache_creation_input_tokens": 300,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
    "output_tokens": 5,
}
_CLAUDE_EVENTS = (
    {"type": "message_start", "message": {"model": "m", "usage": {**CLAUDE_USAGE, "output_tokens": 1}}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "4"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
)
CLAUDE_TOKENS = TokenUsage(350, 5, 355, 40, 300, None, 200)
_GEMINI = {
    "candidates": [{"content": {"parts": [{"text": "4"}]}, "finishReason": "STOP"}],
    "modelVersion": "m",
    "usageMetadata": {
        "promptTokenCount": 10,
        "cachedContentTokenCount": 4,
        "toolUsePromptTokenCount": 3,
        "candidatesTokenCount": 5,
        "thoughtsTokenCount": 7,
        "totalTokenCount": 25,
    },
}
_GEMINI_TOKENS = TokenUsage(13, 12, 25, 4, None, 7)
_GEMINI_READS = (
    "`promptTokenCount` + `toolUsePromptTokenCount`",
    "`candidatesTokenCount` + `thoughtsTokenCount`",
    "`cachedContentTokenCount`",
    "",
    "",
)
_CONVERSE_USAGE = {
    "inputTokens": 10,
    "outputTokens": 5,
    "totalTokens": 75,
    "cacheReadInputTokens": 40,
    "cacheWriteInputTokens": 20,
    "cacheDetails": [{"ttl": "1h", "inputTokens": 20}],
}
_CONVERSE_READS = (
    "`inputTokens` + cached + written",
    "`outputTokens`",
    "`cacheReadInputTokens`",
    "`cacheWriteInputTokens`",
    "",
)
_REASONING = {"prompt_tokens": 32, "completion_tokens": 103, "total_tokens": 135}
_DETAILS = {"prompt_tokens_details": {"cached_tokens": 6}, "completion_tokens_details": {"reasoning_tokens": 94}}
_REASONED = TokenUsage(32, 103, 135, 6, None, 94)
_FEW = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}

ROWS = [
    Row(
        "OpenAI, chat completions",
        chat({**_REASONING, **_DETAILS, "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 20}}),
        replace(_REASONED, cache_creation_input_tokens=20),
        "stop",
        (*_OPENAI[:3], "`prompt_tokens_details.cache_write_tokens`", ""),
        "https://github.com/openai/openai-python/blob/main/src/openai/types/completion_usage.py",
        READ_LATER,
    ),
    Row(
        "OpenAI, responses",
        document(
            object="response",
            status="completed",
            model="m",
            usage={
                "input_tokens": 32,
                "input_tokens_details": {
                    "cached_tokens": 6,
                    "cache_write_tokens": 20,
                    "cache_write_tokens_details": {"ttl_30m_tokens": 15, "ttl_12h_tokens": 5},
                },
                "output_tokens": 103,
                "output_tokens_details": {"reasoning_tokens": 94},
                "total_tokens": 135,
            },
        ),
        replace(_REASONED, cache_creation_input_tokens=20),
        "completed",
        (
            "`input_tokens`",
            "`output_tokens`",
            "`input_tokens_details.cached_tokens`",
            "`input_tokens_details.cache_write_tokens`",
            "",
        ),
        "https://github.com/openai/openai-python/blob/main/src/openai/types/responses/response_usage.py",
        READ_LATER,
    ),
    Row(
        "Azure OpenAI",
        events(
            {"model": "m", "choices": [], "prompt_filter_results": []}, {"choices": [], "usage": _REASONING | _DETAILS}
        ),
        _REASONED,
        None,
        _OPENAI,
        "https://learn.microsoft.com/en-us/azure/ai-services/openai/how-to/prompt-caching",
        READ_LATER,
        streaming=True,
    ),
    Row(
        "Anthropic",
        events(*_CLAUDE_EVENTS),
        CLAUDE_TOKENS,
        "end_turn",
        _ANTHROPIC_READS,
        "https://www.rubydoc.info/gems/anthropic/Anthropic/Models/CacheCreation",
        READ,
        streaming=True,
    ),
    Row(
        "Claude on Vertex AI",
        document(type="message", model="m", stop_reason="end_turn", usage=CLAUDE_USAGE),
        CLAUDE_TOKENS,
        "end_turn",
        _ANTHROPIC_READS,
        "https://github.com/anthropics/anthropic-sdk-python/blob/main/src/anthropic/types/usage.py",
        READ_LATER,
    ),
    Row(
        "Gemini",
        document(**_GEMINI),
        _GEMINI_TOKENS,
        "STOP",
        _GEMINI_READS,
        "https://firebase.google.com/docs/reference/js/ai.usagemetadata",
        READ,
    ),
    Row(
        "Gemini on Vertex AI",
        events({**_GEMINI, "usageMetadata": {"trafficType": "ON_DEMAND"}}, _GEMINI),
        _GEMINI_TOKENS,
        "STOP",
        _GEMINI_READS,
        "https://firebase.google.com/docs/reference/js/ai.usagemetadata",
        READ,
        streaming=True,
    ),
    Row(
        "Gemini Live, a message",
        document(
            serverContent={"turnComplete": True},
            usageMetadata={
                "promptTokenCount": 10,
                "cachedContentTokenCount": 4,
                "toolUsePromptTokenCount": 3,
                "responseTokenCount": 5,
                "thoughtsTokenCount": 7,
                "totalTokenCount": 25,
            },
        ),
        _GEMINI_TOKENS,
        None,
        (_GEMINI_READS[0], "`responseTokenCount` + `thoughtsTokenCount`", *_GEMINI_READS[2:]),
        "https://github.com/googleapis/python-genai/blob/main/google/genai/types.py",
        READ_LATER,
    ),
    Row(
        "Bedrock, Converse",
        document(stopReason="end_turn", usage=_CONVERSE_USAGE, metrics={"latencyMs": 9}),
        TokenUsage(70, 5, 75, 40, 20, None, 20),
        "end_turn",
        _CONVERSE_READS,
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html",
        READ,
    ),
    Row(
        "Bedrock, ConverseStream",
        message("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "4"}})
        + message("messageStop", {"stopReason": "end_turn"})
        + message("metadata", {"usage": _CONVERSE_USAGE, "metrics": {"latencyMs": 9}}),
        TokenUsage(70, 5, 75, 40, 20, None, 20),
        "end_turn",
        _CONVERSE_READS,
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStreamMetadataEvent.html",
        READ,
        streaming=True,
    ),
    Row(
        "Bedrock, InvokeModelWithResponseStream, Claude",
        b"".join(map(wrapped, _CLAUDE_EVENTS)),
        CLAUDE_TOKENS,
        "end_turn",
        _ANTHROPIC_READS,
        "https://github.com/anthropics/anthropic-sdk-python/blob/main/src/anthropic/lib/bedrock/_stream_decoder.py",
        READ_LATER,
        streaming=True,
    ),
    Row(
        "Bedrock, InvokeModelWithResponseStream, others",
        wrapped({"generation": "4", "stop_reason": None})
        + wrapped(
            {
                "generation": "",
                "stop_reason": "stop",
                "amazon-bedrock-invocationMetrics": {
                    "inputTokenCount": 10,
                    "outputTokenCount": 5,
                    "invocationLatency": 9,
                },
            }
        ),
        TokenUsage(10, 5, 15),
        "stop",
        (
            "`inputTokenCount` + cached + written",
            "`outputTokenCount`",
            "`cacheReadInputTokenCount`",
            "`cacheWriteInputTokenCount`",
            "",
        ),
        "https://github.com/langchain-ai/langchain-aws/blob/main/libs/aws/langchain_aws/llms/bedrock.py",
        READ_LATER,
        streaming=True,
    ),
    Row(
        "xAI",
        chat({**_REASONING, "completion_tokens": 9, **_DETAILS, "num_sources_used": 0, "cost_in_usd_ticks": 37756000}),
        _REASONED,
        "stop",
        (
            "`prompt_tokens`",
            "`completion_tokens` + `reasoning_tokens`, if only both make up the total",
            "`prompt_tokens_details.cached_tokens`",
            "",
            "`cost_in_usd_ticks` / 10¹⁰",
        ),
        "https://docs.x.ai/developers/cost-tracking",
        READ,
        Cost(None, None, 0.0037756),
    ),
    Row(
        "DeepSeek",
        chat(
            {
                **_FEW,
                "prompt_cache_hit_tokens": 6,
                "prompt_cache_miss_tokens": 4,
                "completion_tokens_details": {"reasoning_tokens": 3},
            }
        ),
        TokenUsage(10, 5, 15, 6, None, 3),
        "stop",
        ("`prompt_tokens`", "`completion_tokens`", "`prompt_cache_hit_tokens`", "", ""),
        "https://api-docs.deepseek.com/zh-cn/api/create-chat-completion",
        READ_LATER,
    ),
    Row(
        "Mistral",
        chat(
            {
                **_FEW,
                "prompt_audio_seconds": None,
                "num_cached_tokens": 6,
                "prompt_tokens_details": {"cached_tokens": 6},
            }
        ),
        TokenUsage(10, 5, 15, 6),
        "stop",
        (
            "`prompt_tokens`",
            "`completion_tokens`",
            "`prompt_tokens_details.cached_tokens`",
            "",
            "",
        ),
        "https://github.com/mistralai/client-python/blob/main/src/mistralai/client/models/prompttokensdetails.py",
        READ_LATER,
    ),
    Row(
        "Cohere, v2",
        events(
            {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "4"}}}},
            {
                "type": "message-end",
                "delta": {
                    "finish_reason": "COMPLETE",
                    "usage": {
                        "billed_units": {"input_tokens": 8, "output_tokens": 5},
                        "tokens": {"input_tokens": 74, "output_tokens": 6},
                        "cached_tokens": 64,
                    },
                },
            },
        ),
        TokenUsage(74, 6, 80, 64),
        "COMPLETE",
        ("`tokens.input_tokens`, or `billed_units`", "`tokens.output_tokens`", "`cached_tokens`", "", ""),
        "https://github.com/cohere-ai/cohere-python/blob/main/src/cohere/types/usage.py",
        READ_LATER,
        streaming=True,
    ),
    Row(
        "Groq",
        chat(
            {
                **_FEW,
                "queue_time": 0.1,
                "total_time": 0.2,
                "prompt_tokens_details": {"cached_tokens": 6},
                "completion_tokens_details": {"reasoning_tokens": 3},
            }
        ),
        TokenUsage(10, 5, 15, 6, None, 3),
        "stop",
        _OPENAI,
        "https://github.com/groq/groq-python/blob/main/src/groq/types/completion_usage.py",
        READ_LATER,
    ),
    Row(
        "Together",
        chat(_FEW),
        TokenUsage(10, 5, 15),
        "stop",
        _PLAIN,
        "https://github.com/togethercomputer/together-py/blob/main/src/together/types/chat/chat_completion_usage.py",
        READ_LATER,
    ),
    Row(
        "Fireworks",
        chat({**_FEW, "prompt_tokens_details": {"cached_tokens": 6}}),
        TokenUsage(10, 5, 15, 6),
        "stop",
        _OPENAI,
        "https://github.com/fw-ai-external/python-sdk/blob/main/src/fireworks/types/shared/usage_info.py",
        READ_LATER,
    ),
    Row(
        "OpenRouter",
        events(
            {"model": "m", "choices": [{"delta": {"content": "4"}, "finish_reason": "stop"}]},
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": 194,
                    "completion_tokens": 2,
                    "total_tokens": 196,
                    "cost": 0.95,
                    "is_byok": False,
                    "cost_details": {"upstream_inference_cost": 19},
                    "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 100, "audio_tokens": 0},
                    "completion_tokens_details": {"reasoning_tokens": 0},
                },
            },
            end="data: [DONE]\n\n",
        ),
        TokenUsage(194, 2, 196, 0, 100, 0),
        "stop",
        (
            "`prompt_tokens`",
            "`completion_tokens`",
            "`prompt_tokens_details.cached_tokens`",
            "`prompt_tokens_details.cache_write_tokens`",
            "`cost`; with `is_byok`, + `cost_details.upstream_inference_cost`",
        ),
        "https://openrouter.ai/docs/use-cases/usage-accounting",
        READ,
        Cost(None, None, 0.95),
        streaming=True,
    ),
    Row(
        "Perplexity, Agent API",
        document(
            object="response",
            status="completed",
            model="m",
            usage={
                "input_tokens": 10,
                "input_tokens_details": {"cache_creation_input_tokens": 2, "cache_read_input_tokens": 6},
                "output_tokens": 5,
                "total_tokens": 15,
                "cost": {"currency": "USD", "input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.35},
            },
        ),
        TokenUsage(10, 5, 15, 6, 2),
        "completed",
        (
            "`input_tokens`",
            "`output_tokens`",
            "`input_tokens_details.cache_read_input_tokens`",
            "`input_tokens_details.cache_creation_input_tokens`",
            "`cost.total_cost` and its parts, in USD",
        ),
        "https://raw.githubusercontent.com/api-evangelist/perplexity/refs/heads/main/json-schema/perplexity-responsesusage-schema.json",
        READ,
        Cost(0.1, 0.2, 0.35),
    ),
    Row(
        "DeepInfra",
        chat({**_FEW, "prompt_tokens_details": {"cached_tokens": 6}, "estimated_cost": 0.0002}),
        TokenUsage(10, 5, 15, 6),
        "stop",
        ("`prompt_tokens`", "`completion_tokens`", "`prompt_tokens_details.cached_tokens`", "", "`estimated_cost`"),
        "https://github.com/deepinfra/docs/blob/main/chat/prompt-caching.mdx",
        READ_LATER,
        Cost(None, None, 0.0002),
    ),
    Row(
        "Cerebras",
        chat({**_FEW, "prompt_tokens_details": {"cached_tokens": 6}}, time_info={"queue_time": 0.1}),
        TokenUsage(10, 5, 15, 6),
        "stop",
        _OPENAI,
        "https://github.com/Cerebras/cerebras-cloud-sdk-python/blob/main/src/cerebras/cloud/sdk/types/chat/chat_completion.py",
        READ_LATER,
    ),
    Row(
        "SambaNova",
        chat({**_FEW, "total_latency": 0.1, "prompt_tokens_details": {"cached_tokens": 6}}),
        TokenUsage(10, 5, 15, 6),
        "stop",
        _OPENAI,
        "https://github.com/sambanova/sambanova-python/blob/main/src/sambanova/types/chat/chat_completion_response.py",
        READ_LATER,
    ),
    Row(
        "NVIDIA NIM",
        chat({**_FEW, "prompt_tokens_details": {"cached_tokens": 6}}),
        TokenUsage(10, 5, 15, 6),
        "stop",
        _OPENAI,
        "https://docs.nvidia.com/nim/large-language-models/latest/reference/api-reference.html",
        READ_LATER,
    ),
    Row(
        "Moonshot (Kimi)",
        chat({**_FEW, "cached_tokens": 6}),
        TokenUsage(10, 5, 15, 6),
        "stop",
        ("`prompt_tokens`", "`completion_tokens`", "`cached_tokens`", "", ""),
        "https://github.com/MoonshotAI/kimi-cli/blob/main/packages/kosong/src/kosong/chat_provider/kimi.py",
        READ_LATER,
    ),
    Row(
        "Alibaba Model Studio (Qwen)",
        chat(
            {
                **_FEW,
                "prompt_tokens_details": {
                    "cached_tokens": 6,
                    "cache_creation_input_tokens": 2,
                    "cache_creation": {"ephemeral_5m_input_tokens": 2},
                    "cache_type": "ephemeral",
                },
            }
        ),
        TokenUsage(10, 5, 15, 6, 2),
        "stop",
        (
            "`prompt_tokens`",
            "`completion_tokens`",
            "`prompt_tokens_details.cached_tokens`",
            "`prompt_tokens_details.cache_creation_input_tokens`",
            "",
        ),
        "https://www.alibabacloud.com/help/en/model-studio/context-cache",
        READ_LATER,
    ),
    Row(
        "Z.ai (GLM)",
        chat({**_FEW, "prompt_tokens_details": {"cached_tokens": 6}}),
        TokenUsage(10, 5, 15, 6),
        "stop",
        _OPENAI,
        "https://docs.z.ai/guides/capabilities/cache",
        READ_LATER,
    ),
    Row(
        "Cloudflare Workers AI",
        document(result={"response": "4", "usage": _FEW}, success=True, errors=[], messages=[]),
        TokenUsage(10, 5, 15),
        None,
        ("`result.usage.prompt_tokens`", "`result.usage.completion_tokens`", "", "", ""),
        "https://github.com/cloudflare/cloudflare-python/blob/main/src/cloudflare/types/ai/ai_run_response.py",
        READ_LATER,
    ),
    Row(
        "IBM watsonx.ai, text generation",
        document(
            model_id="m",
            results=[
                {"generated_text": "4", "generated_token_count": 5, "input_token_count": 10, "stop_reason": "eos_token"}
            ],
        ),
        TokenUsage(10, 5, 15),
        "eos_token",
        ("`input_token_count`", "`generated_token_count`", "", "", ""),
        "https://ibm.github.io/watsonx-ai-node-sdk/interfaces/0_1_x.WatsonXAI.TextGenResult-1.html",
        READ,
    ),
    Row(
        "Databricks",
        chat(_FEW),
        TokenUsage(10, 5, 15),
        "stop",
        _PLAIN,
        "https://docs.databricks.com/machine-learning/foundation-models/api-reference.html",
        READ_LATER,
    ),
    Row(
        "vLLM",
        chat({**_FEW, "prompt_tokens_details": {"cached_tokens": 6}}),
        TokenUsage(10, 5, 15, 6),
        "stop",
        _OPENAI,
        "https://github.com/vllm-project/vllm/blob/main/vllm/entrypoints/openai/engine/protocol.py",
        READ_LATER,
    ),
    Row(
        "Ollama",
        lines(
            {"model": "m", "message": {"role": "assistant", "content": "4"}, "done": False},
            {
                "model": "m",
                "message": {"role": "assistant", "content": ""},
                "done": True,
                "done_reason": "stop",
                "prompt_eval_count": 10,
                "prompt_eval_cached_count": 6,
                "eval_count": 5,
            },
        ),
        TokenUsage(10, 5, 15, 6),
        "stop",
        ("`prompt_eval_count`", "`eval_count`", "`prompt_eval_cached_count`", "", ""),
        "https://docs.ollama.com/api/usage",
        READ,
        streaming=True,
    ),
    Row(
        "SGLang, `/generate`",
        document(
            text="4",
            meta_info={
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "cached_tokens": 6,
                "reasoning_tokens": 3,
                "finish_reason": {"type": "stop", "matched": 2},
            },
        ),
        TokenUsage(10, 5, 15, 6, None, 3),
        "stop",
        ("`meta_info.prompt_tokens`", "`meta_info.completion_tokens`", "`meta_info.cached_tokens`", "", ""),
        "https://github.com/sgl-project/sglang/blob/main/python/sglang/srt/managers/tokenizer_manager.py",
        READ_LATER,
    ),
    Row(
        "Text Generation Inference",
        events(
            {"index": 1, "token": {"id": 3, "text": "4"}, "generated_text": None, "details": None},
            {
                "index": 2,
                "token": {"id": 2, "text": "</s>", "special": True},
                "generated_text": "4",
                "details": {"finish_reason": "eos_token", "generated_tokens": 5, "input_length": 10, "seed": None},
            },
        ),
        TokenUsage(10, 5, 15),
        "eos_token",
        ("`details.input_length`", "`details.generated_tokens`", "", "", ""),
        "https://app.unpkg.com/@huggingface/tasks/files/src/tasks/text-generation/spec/stream_output.json",
        READ,
        streaming=True,
    ),
]


def table() -> list[str]:
    """Return the lines of the table in docs/providers.md."""
    head = ["Provider", "Input", "Output", "Cached", "Written to the cache", "Cost", "Reference"]
    rows = [[row.name, *row.reads, f"[{row.as_of}]({row.source})"] for row in ROWS]
    return [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |") for cells in rows),
    ]
