"""json_ends.py: from either end of a cut JSON text, exactly the members that are there are found."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent_gateway_client.server.reading.json_ends import first_members, last_members

NAMES = ("usage", "model")
TEXTS = st.text(alphabet='ab"\\{}[]:, \nü\u2028', max_size=12) | st.sampled_from(
    ['"usage":', '{"usage":1}', '\\"', "\\"]
)
VALUES = st.recursive(
    TEXTS | st.integers() | st.none() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "a", '"usage']), inner, max_size=3)
    ),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.sampled_from([*NAMES, "b", "c"]), VALUES, max_size=4) | st.lists(VALUES, max_size=3)
Member = tuple[int, str, Any]


def members_of(text: str) -> list[tuple[int, int, Member]]:
    """Slowly read a whole document: the start and end of each wanted member, and its value."""
    found: list[tuple[int, int, Member]] = []
    depth, position = 0, 0
    while position < len(text):
        if text[position] == '"':
            name, end = json.decoder.scanstring(text, position + 1)
            rest = text[end:].lstrip()
            if name in NAMES and rest.startswith(":"):
                value_at = text.index(":", end) + 1
                value_at += len(text[value_at:]) - len(text[value_at:].lstrip())
                value, value_end = json.JSONDecoder().raw_decode(text, value_at)
                found.append((position, value_end, (depth, name, value)))
            position = end
            continue
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(text[position], 0)
        position += 1
    return found


@pytest.mark.slow
@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 1]), st.data())
@example({"a": "\\", "usage": 1234}, True, None, None)
def test_every_cut(document: Any, ascii_only: bool, indent: int | None, data: Any):
    """For a cut at any place, the end yields the members whose names are whole in it, and so does the beginning."""
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    expected = members_of(text)
    cuts = range(len(text) + 1) if data is None else [data.draw(st.integers(0, len(text)))]
    for cut in cuts:
        head, tail = text[:cut], text[cut:]
        # A quote or backslash right at the cut may belong to an escape, and is skipped.
        begins = len(text) - len(tail.lstrip('"\\')) if cut else 0
        assert last_members(tail, NAMES) == [member for start, _, member in expected if start >= begins]
        assert first_members(head, NAMES) == [member for _, end, member in expected if end < cut]


@pytest.mark.slow
@given(DOCUMENTS)
def test_a_whole_document_from_its_beginning(document: Any):
    """In an uncut document everything is found."""
    text = json.dumps(document)
    assert first_members(text, NAMES) == [member for _, _, member in members_of(text)]


@given(st.text(alphabet='"\\{}[]:usage1, ', max_size=60))
def test_junk(text: str):
    """Invalid JSON raises nothing."""
    first_members(text, NAMES)
    last_members(text, NAMES)


def test_what_nests_too_deeply_is_passed_over():
    """A value that Python's parser rejects is not found, the others are."""
    text = '{"model": ' + "[" * 100_000 + "]" * 100_000 + ', "usage": 1}'
    assert last_members(text, NAMES) == [(1, "usage", 1)]
