"""tree.py: a trace as a tree for the terminal."""

from collections.abc import Sequence

from mlflow.entities import Span
from rich.console import Console

from agent_gateway_client.cli.tree import notes, trace_tree
from tests.support.trace_samples import joined, span


def lines_of(*spans: Span, linked: Sequence[Span] = ()) -> list[str]:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(trace_tree(joined(*spans, linked=linked)))
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


def test_a_model_servers_times_are_said():
    """In words, below the attempt; what is not a number is left out."""
    times = {"gen_ai__latency__time_in_queue": 1.2, "gen_ai__latency__time_in_model_prefill": 0.25}
    assert (
        lines_of(
            span(1, None, "gateway/chat", 0, 5000),
            span(2, 1, "provider/openai/m", 0, 5000),
            span(3, 2, "engine/m", 0, 4000, gen_ai__latency__time_in_model_decode="soon", **times),
        )[-1].strip()
        == "└── engine/m  4.00 s  OK  waited 1.20 s in the queue, prefill 250 ms"
    )


def test_a_span_without_its_parent_or_its_end_is_shown_too():
    assert lines_of(span(2, 9, "orphan", 0, None)) == ["trace tr-1", "└── orphan  running  OK"]


def test_text_from_a_trace_is_no_markup():
    """A span's name in brackets stays as it is."""
    assert lines_of(span(1, None, "[red]tool[/red]", 0, 1))[1] == "└── [red]tool[/red]  1 ms  OK"


def test_an_escape_sequence_in_a_trace_reaches_no_terminal():
    """Nor does a line break: a name is one printable line."""
    assert lines_of(span(1, None, "\x1b[31mtool\nnext", 0, 1))[1] == "└── �[31mtool�next  1 ms  OK"


def test_the_gateways_own_trace_is_below_its_link_after_the_attempts():
    """Where it could be read; a span that comes after the gateway's is back at its own level."""
    assert lines_of(
        span(1, None, "agent", 0, 10),
        span(2, 1, "gateway/chat", 1, 5, mlflow__gateway__linkedTraceId="tr-gw"),
        span(3, 2, "provider/openai/m1", 2, 4),
        span(4, 1, "tool", 6, 8),
        linked=[span(7, None, "gateway/chat", 1, 5), span(8, 7, "provider/openai/m1", 2, 4)],
    )[1:] == [
        "└── agent  10 ms  OK",
        "    ├── gateway/chat  4 ms  OK  -> tr-gw",
        "    │   ├── provider/openai/m1  2 ms  OK",
        "    │   └── the gateway's own trace",
        "    │       └── gateway/chat  4 ms  OK",
        "    │           └── provider/openai/m1  2 ms  OK",
        "    └── tool  2 ms  OK",
    ]


def test_where_the_time_went_is_said():
    trace = joined(span(1, None, "agent", 0, 100), span(2, 1, "gateway/chat", 0, 25))
    assert [note.plain for note in notes(trace)] == [
        "Where the time went: gateway 25 % (25 ms), agent and network 75 % (75 ms)"
    ]


def test_a_mirror_whose_caller_is_missing_is_named():
    """A script that ended too soon has lost its span; the trace looks whole otherwise."""
    note, _ = notes(joined(span(2, 9, "gateway/chat", 0, 5), span(3, 2, "provider/openai/m", 1, 2)))
    assert note.plain.startswith("1 gateway call is here without the agent's span")
    assert "mlflow.flush_trace_async_logging()" in note.plain
