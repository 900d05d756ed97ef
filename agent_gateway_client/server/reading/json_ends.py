"""Finds members of a JSON value of which only the start or the end is available.

In a JSON text, an unescaped quote starts or ends a string, and brackets outside of strings are structure. So the depth
of each member can be computed from either end, and JSON inside a prompt is not mistaken for the response around it.
"""

import json
import re
from collections.abc import Container
from typing import Any

_STRING_BODY = r'[^"\\]*(?:\\.[^"\\]*)*'
_TOKEN = re.compile(rf'"({_STRING_BODY})(?:"(\s*:\s*)?|\\?\Z)|[{{}}\[\]]', re.DOTALL)
_REST_OF_STRING = re.compile(rf'{_STRING_BODY}"', re.DOTALL)
_ESCAPE = re.compile(r"\\.", re.DOTALL)
_DECODER = json.JSONDecoder()

_MAX_FAILURES = 16
"""Maximum number of values that fail to decode, each of which may cost a scan to the end of the text. A real body has
one, at its cut."""


def first_members(text: str, wanted: Container[str]) -> list[tuple[int, str, Any]]:
    """Find members in the start of a JSON value.

    Args:
        text: The start.
        wanted: The members' names.

    Returns:
        Depth (1 for members of the outermost object; arrays count too), name and value of each complete member.
    """
    return _members(text.lstrip(), wanted)[1]


def last_members(text: str, wanted: Container[str]) -> list[tuple[int, str, Any]]:
    """Find members in the end of a JSON value; see :func:`first_members`."""
    # The cut may split an escape. From the first other character on, all escapes are complete.
    text = text.rstrip().lstrip('"\\')
    if not text.endswith(("}", "]")):
        return []
    if _ESCAPE.sub("", text).count('"') % 2:
        rest = _REST_OF_STRING.match(text)
        text = text[rest.end() :] if rest else ""
    depth, members = _members(text, wanted)
    return [(member_depth - depth, name, value) for member_depth, name, value in members]


def _members(text: str, wanted: Container[str]) -> tuple[int, list[tuple[int, str, Any]]]:
    """Return the depth at the end of the text and the members, both relative to its start."""
    depth = failures = 0
    members = []
    for token in _TOKEN.finditer(text):
        name, colon = token.groups()
        if name is None:
            depth += 1 if token[0] in "{[" else -1
        elif colon and name in wanted and failures < _MAX_FAILURES:
            try:
                value, end = _DECODER.raw_decode(text, token.end())
            except (ValueError, RecursionError):
                failures += 1
                continue
            # A number at the very end may continue after the cut.
            if end < len(text):
                members.append((depth, name, value))
    return depth, members
