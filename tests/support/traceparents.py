"""Header lines of requests, and whether their calls are mirrored: the valid and invalid forms of a traceparent."""

from typing import NamedTuple


class Case(NamedTuple):
    """Header lines, with ``{t}`` for the trace id and ``{s}`` for the span id, and whether the call is mirrored."""

    headers: list[tuple[str, str]]
    mirrored: bool


MANY = ",".join(f"k{number}=1" for number in range(33))
LONG = ",".join(f"k{number}={'v' * 256}" for number in range(32))
RIGHT = "00-{t}-{s}-01"
CASES = {
    "right": Case([("traceparent", RIGHT)], True),
    "in capitals": Case([("TRACEPARENT", RIGHT)], True),
    "in mixed case": Case([("TraceParent", RIGHT)], True),
    "with the random flag": Case([("traceparent", "00-{t}-{s}-03")], True),
    "of a later version": Case([("traceparent", "01-{t}-{s}-01-later")], True),
    "with a tracestate": Case([("traceparent", RIGHT), ("tracestate", "a=1"), ("tracestate", "b=2")], True),
    "none": Case([], False),
    "unsampled": Case([("traceparent", "00-{t}-{s}-00")], False),
    "unsampled, random": Case([("traceparent", "00-{t}-{s}-02")], False),
    "empty": Case([("traceparent", "")], False),
    "text": Case([("traceparent", "{t}")], False),
    "span of zeros": Case([("traceparent", "00-{t}-0000000000000000-01")], False),
    "trace of zeros": Case([("traceparent", "00-00000000000000000000000000000000-{s}-01")], False),
    "version ff": Case([("traceparent", "ff-{t}-{s}-01")], False),
    "too long": Case([("traceparent", "00-{t}-{s}-01-more")], False),
    "no hexadecimal": Case([("traceparent", "00-{t}-{s}-0g")], False),
    "twice": Case([("traceparent", RIGHT), ("traceparent", RIGHT)], False),
    "twice, different case": Case([("traceparent", RIGHT), ("TRACEPARENT", RIGHT)], False),
    "oversized": Case([("traceparent", "00-{t}-{s}-01" + "0" * 5000)], False),
    "invalid tracestate": Case([("traceparent", RIGHT), ("tracestate", "no member")], True),
    "duplicated tracestate key": Case([("traceparent", RIGHT), ("tracestate", "a=1,a=2")], True),
    "too many tracestate members": Case([("traceparent", RIGHT), ("tracestate", MANY)], True),
    "oversized tracestate": Case([("traceparent", RIGHT), ("tracestate", LONG)], True),
    "right again, the last of all": Case([("traceparent", RIGHT)], True),
}
