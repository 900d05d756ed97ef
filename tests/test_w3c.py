"""w3c.extract(): W3C Trace Context Level 2, section 3 (https://www.w3.org/TR/trace-context-2/)."""

import re
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_gateway_client.w3c import MAX_TRACESTATE_LENGTH, TraceContext, extract

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
CONTEXT = TraceContext(int(TRACE_ID, 16), int(SPAN_ID, 16), 1)


def tracestate_of(*lines: str) -> str:
    """Return the tracestate read beside a good traceparent, which is taken in any case."""
    found = extract([("traceparent", PARENT), *(("tracestate", line) for line in lines)])
    assert found is not None
    assert found[:3] == CONTEXT[:3]
    return found.tracestate


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (PARENT, 1),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", 0),
        (f"00-{TRACE_ID}-{SPAN_ID}-02", 2),
        (f"00-{TRACE_ID}-{SPAN_ID}-03", 3),
        (f"00-{TRACE_ID}-{SPAN_ID}-ff", 255),
        (f"01-{TRACE_ID}-{SPAN_ID}-01", 1),
        (f"fe-{TRACE_ID}-{SPAN_ID}-00", 0),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-what-the-future-will-be-like", 1),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-", 1),
        (f" \t{PARENT}\t ", 1),
    ],
)
def test_a_valid_traceparent_is_read(value: str, flags: int):
    """Version 00 is read as it is, a later one as far as 00 goes; white space around it does not count."""
    assert extract({"traceparent": value}) == CONTEXT._replace(flags=flags)


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("fe", False)]
)
def test_only_the_lowest_flag_says_sampled(flags: str, sampled: bool):
    """Whether a context is sampled is the lowest bit, whatever the others are."""
    assert extract({"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-{flags}"}).sampled is sampled


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        PARENT[:-1],
        PARENT + "0",
        PARENT + "-",
        PARENT + "-more",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"FE-{TRACE_ID}-{SPAN_ID}-01",
        f"0-{TRACE_ID}-{SPAN_ID}-01",
        f"000-{TRACE_ID}-{SPAN_ID}-01",
        f".0-{TRACE_ID}-{SPAN_ID}-01",
        f"cc-{TRACE_ID}-{SPAN_ID}-01.what",
        f"cc-{TRACE_ID}-{SPAN_ID}-011",
        f"cc-{TRACE_ID}-{SPAN_ID}-1",
        f"cc-{TRACE_ID}-{SPAN_ID}",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"cc-{'0' * 32}-{SPAN_ID}-01",
        f"cc-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID.upper()}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-0A",
        f"00-{TRACE_ID[:-1]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}0-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID[:-1]}-01",
        f"00-{TRACE_ID}-{SPAN_ID}0-01",
        f"00-{TRACE_ID[:-1]}g-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID[:-1]}.-01",
        f"00-{TRACE_ID}-{SPAN_ID}-.1",
        f"00-{TRACE_ID}-{SPAN_ID}- 1",
        f"00_{TRACE_ID}_{SPAN_ID}_01",
        PARENT.replace("-", ""),
        f"{PARENT}\n",
        f"\n{PARENT}",
        f"{PARENT}\x00",
        f"\xa0{PARENT}",
        f"{PARENT},{PARENT}",
        f"{PARENT}, {PARENT}",
        f"00-{TRACE_ID[:-1]}\N{ARABIC-INDIC DIGIT ONE}-{SPAN_ID}-01",
        f"00-+{TRACE_ID[1:]}-{SPAN_ID}-01",
        f"00-0x{TRACE_ID[2:]}-{SPAN_ID}-01",
    ],
)
def test_an_invalid_traceparent_is_none(value: str):
    """What the grammar does not allow is as if there were none, with a good tracestate or not."""
    assert extract({"traceparent": value}) is None
    assert extract({"traceparent": value, "tracestate": "a=1"}) is None


@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT", "TraceParent", "tRACEPARENT"])
def test_names_are_read_in_any_case(name: str):
    """Header names have no case, as text and as bytes."""
    state = name.replace("parent", "state").replace("PARENT", "STATE").replace("Parent", "State")
    expected = CONTEXT._replace(tracestate="a=1")
    assert extract({name: PARENT, state: "a=1"}) == expected
    assert extract([(name.encode(), PARENT.encode()), (state.encode(), b"a=1")]) == expected


@pytest.mark.parametrize("name", ["trace-parent", "trace.parent", "trace_parent", "xtraceparent", "parenttrace"])
def test_other_names_are_not_read(name: str):
    """A name that only looks like traceparent is another header."""
    assert extract({name: PARENT}) is None


@pytest.mark.parametrize("headers", [{}, [], {"tracestate": "a=1"}, {"accept": "*/*"}, [(b"\xff\xfe", b"\xff")]])
def test_without_a_traceparent_there_is_none(headers: Any):
    """No traceparent, no parent; a tracestate alone means nothing."""
    assert extract(headers) is None


@pytest.mark.parametrize("second", [PARENT, PARENT.replace("-01", "-00"), "", "nonsense"])
def test_two_traceparents_are_none(second: str):
    """More than one traceparent line is refused, even where they say the same, in whatever case."""
    assert extract([("traceparent", PARENT), ("traceparent", second)]) is None
    assert extract([(b"traceparent", second.encode()), (b"x", b"y"), (b"TraceParent", PARENT.encode())]) is None
    assert extract({"traceparent": PARENT, "TRACEPARENT": second}) is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ""),
        ([""], ""),
        (["foo=1"], "foo=1"),
        (["foo=1,bar=2"], "foo=1,bar=2"),
        (["foo=1", "bar=2"], "foo=1,bar=2"),
        (["foo=1", "", "bar=2,baz=3"], "foo=1,bar=2,baz=3"),
        (["foo=1 \t , \t bar=2, \t baz=3"], "foo=1,bar=2,baz=3"),
        (["foo=1\t \t,\t \tbar=2", " "], "foo=1,bar=2"),
        ([",foo=1,,,bar=2,"], "foo=1,bar=2"),
        (["foo= 1"], "foo= 1"),
        (["foo=a b"], "foo=a b"),
        (["0a=1"], "0a=1"),
        (["fw529a3039@dt=FfffffCQ"], "fw529a3039@dt=FfffffCQ"),
        (["a_-*/@b=1"], "a_-*/@b=1"),
        (["a" * 256 + "=1"], "a" * 256 + "=1"),
        (["a=" + "v" * 256], "a=" + "v" * 256),
        (["a=!+-<>~"], "a=!+-<>~"),
    ],
)
def test_a_valid_tracestate_is_relayed(lines: list[str], expected: str):
    """Members keep their order over all lines; white space around them and empty members are dropped."""
    assert tracestate_of(*lines) == expected


@pytest.mark.parametrize(
    "lines",
    [
        ["foo"],
        ["foo="],
        ["=1"],
        ["foo =1"],
        ["Foo=1"],
        ["foo.bar=1"],
        ["foo=1,foo=1,BAD=1"],
        ["foo=bar=baz"],
        ["foo=,bar=3"],
        ["@foo=1"],
        ["_foo=1"],
        ["-foo=1"],
        ["*foo=1"],
        ["/foo=1"],
        ["föö=1"],
        ["foo=\xe9"],
        ["foo=\x7f"],
        ["foo=a\tb"],
        ["foo=1\n"],
        ["foo=1\x00"],
        ["a" * 257 + "=1"],
        ["a=" + "v" * 257],
        [",".join(f"k{number}=1" for number in range(33))],
        [f"k{number}=1" for number in range(33)],
        ["good=1,b@d=1,BAD=2"],
        ["," * (MAX_TRACESTATE_LENGTH + 1)],
        [",".join(f"k{number}={'v' * 256}" for number in range(32))],
    ],
)
def test_an_invalid_tracestate_is_dropped(lines: list[str]):
    """An invalid or oversized tracestate does not affect the traceparent."""
    assert tracestate_of(*lines) == ""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["foo=1,foo=1"], "foo=1"),
        (["foo=1,bar=2,foo=3"], "foo=1,bar=2"),
        (["foo=1", "foo=2"], "foo=1"),
        (["a=1,b=1", "b=2,a=2", "c=1"], "a=1,b=1,c=1"),
    ],
)
def test_of_duplicated_keys_the_first_is_relayed(lines: list[str], expected: str):
    """W3C lets a participant discard duplicate keys."""
    assert tracestate_of(*lines) == expected


def test_the_tracestate_limits_are_inclusive():
    """32 members, and exactly the greatest length, are still relayed."""
    members = ",".join(f"k{number}=1" for number in range(32))
    assert tracestate_of(members) == members
    # 31 members of 257 characters with their commas, and one that fills up.
    full = ",".join(f"k{number:02}={'v' * 252}" for number in range(31))
    full += ",z=" + "v" * (MAX_TRACESTATE_LENGTH - len(full) - 3)
    assert (len(full), tracestate_of(full)) == (MAX_TRACESTATE_LENGTH, full)
    assert tracestate_of(full + ",") == ""


def test_asgi_headers_and_mixed_pairs_are_read():
    """Pairs of bytes (ASGI), of text, or mixed, from any iterable, are read alike."""
    expected = CONTEXT._replace(tracestate="a=1,b=2")
    pairs = [
        (b"host", b"\xff"),
        (b"traceparent", PARENT.encode()),
        (b"tracestate", b"a=1"),
        (b"tracestate", b"b=2"),
    ]
    assert extract(pairs) == expected
    assert extract(iter(pairs)) == expected
    assert extract([("traceparent", PARENT.encode()), (b"tracestate", "a=1"), ("tracestate", "b=2")]) == expected


KEYS = st.from_regex(r"[a-z0-9][a-z0-9_\-*/@]{0,40}", fullmatch=True)
VALUES = st.from_regex(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,40}[\x21-\x2b\x2d-\x3c\x3e-\x7e]", fullmatch=True)
CONTEXTS = st.builds(
    TraceContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.integers(0, 255),
    st.dictionaries(KEYS, VALUES, max_size=32).map(lambda state: ",".join(f"{key}={state[key]}" for key in state)),
)


@pytest.mark.slow
@settings(deadline=None)
@given(CONTEXTS)
def test_what_is_sent_is_read_back(sent: TraceContext):
    """to_headers() and extract() are each other's inverse, for text and for bytes."""
    headers = sent.to_headers()
    assert extract(headers) == sent
    assert extract([(name.upper().encode(), value.encode()) for name, value in headers.items()]) == sent


NAMES = st.sampled_from(["traceparent", "tracestate", "TraceParent", b"traceparent", b"TRACESTATE"])
NEARLY = st.from_regex(r"[0f][0-9a-f]-[0-9a-f]{31,33}-[0-9a-f]{15,17}-[0-9a-fA-F]{1,3}(-.*)?", fullmatch=True)
JUNK = st.text(max_size=80) | st.binary(max_size=80) | NEARLY | st.text(string.printable, max_size=80)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(NAMES | JUNK, JUNK), max_size=6))
def test_junk_never_raises_and_is_never_taken_for_a_context(headers: list[tuple[Any, Any]]):
    """Whatever the headers hold, the answer is ``None`` or a context that one line of them says."""
    found = extract(headers)
    if found is not None:
        lines = [value if isinstance(value, str) else value.decode("latin-1") for _, value in headers]
        said = rf"[ \t]*(?!ff)[0-9a-f]{{2}}{re.escape(found.traceparent[2:])}(-.*)?[ \t]*"
        assert any(re.fullmatch(said, line) for line in lines)
        assert found.trace_id > 0
        assert found.span_id > 0
