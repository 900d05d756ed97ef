"""tree.py: a trace as a tree for the terminal."""

import json
from typing import Any

from mlflow.entities import Span, Trace, TraceData, TraceInfo, TraceLocation, TraceState
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags
from rich.console import Console

from agent_gateway_client.cli.tree import trace_tree

MILLISECOND = 1_000_000


def span(number: int, parent: int | None, name: str, start: int, end: int | None, **attributes: Any) -> Span:
    """A span with times in milliseconds; one with an `error.type` has failed."""
    written = {"mlflow.traceRequestId": "tr-1", **{k.replace("__", "."): v for k, v in attributes.items()}}
    return Span(
        ReadableSpan(
            name=name,
            context=SpanContext(1, number, is_remote=False, trace_flags=TraceFlags(1)),
            parent=SpanContext(1, parent, is_remote=True) if parent else None,
            attributes={key: json.dumps(value) for key, value in written.items()},
            start_time=start * MILLISECOND,
            end_time=None if end is None else end * MILLISECOND,
            status=Status(StatusCode.ERROR if "error.type" in written else StatusCode.OK),
        )
    )


def lines_of(*spans: Span) -> list[str]:
    info = TraceInfo("tr-1", TraceLocation.from_experiment_id("7"), 0, TraceState.OK)
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(trace_tree(Trace(info, TraceData(list(spans))), "http://mlflow"))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_span_is_shown_with_all_that_is_known():
    """In the order of their start, below their parents; cached tokens apart; a cost without trailing zeros."""
    tokens = {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12, "cache_read_input_tokens": 4}
    assert lines_of(
        span(3, 2, "provider/openai/m2", 30, 90, mlflow__llm__model="m2", mlflow__chat__tokenUsage=tokens,
             mlflow__llm__cost={"total_cost": 0.00125}),
        span(4, 2, "provider/openai/m1", 10, 20, mlflow__llm__model="m1", error__type="503"),
        span(2, 1, "gateway/chat", 5, 95, mlflow__gateway__linkedTraceId="tr-gw"),
        span(1, None, "agent", 0, 1500),
    ) == [
        "trace tr-1",
        "└── agent  1.50 s  OK",
        "    └── gateway/chat  90 ms  OK  -> tr-gw",
        "        ├── provider/openai/m1  10 ms  ERROR 503  m1",
        "        └── provider/openai/m2  60 ms  OK  m2  10 (4 cached) + 2 tokens  $0.00125",
    ]  # fmt: skip


def test_a_span_without_its_parent_or_its_end_is_shown_too():
    assert lines_of(span(2, 9, "orphan", 0, None)) == ["trace tr-1", "└── orphan  running  OK"]


def test_text_from_a_trace_is_no_markup():
    """A span's name in brackets stays as it is."""
    assert lines_of(span(1, None, "[red]tool[/red]", 0, 1))[1] == "└── [red]tool[/red]  1 ms  OK"
