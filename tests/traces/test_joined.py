"""joined.py: the judge of joined calls is the one of the demo, the doctor and the end-to-end tests."""

import pytest

from agent_gateway_client.doctor import links
from agent_gateway_client.traces.joined import fault_of, mirrors_in
from tests.demo.test_verdict import CLIENT, attempt_span, client_span, mirror_span
from tests.support import e2e

CALLER = f"{CLIENT:016x}"


def test_a_joined_call():
    """The mirrors and attempts are found by name and parent."""
    spans = [attempt_span(), mirror_span(), client_span()]
    assert mirrors_in(spans) == [spans[1]]
    assert fault_of(spans, spans[1], CALLER) is None


@pytest.mark.parametrize("is_within", [True, False])
def test_a_clock_that_differs(is_within: bool):
    """A mirror that seems to end after its caller is a fault unless the clocks may differ."""
    mirror = mirror_span((200, 901))
    fault = fault_of([client_span(), mirror], mirror, CALLER, is_within=is_within)
    assert (fault is None) is not is_within


def test_a_mirror_below_another_span():
    """The fault names both spans."""
    mirror = mirror_span(parent=9)
    fault = fault_of([client_span(), mirror], mirror, CALLER)
    assert fault == f"the mirror is below the span {9:016x}, not below {CALLER}, which made the call"


def test_all_use_it():
    """The doctor and the end-to-end tests have no rules of their own."""
    assert links.fault_of is fault_of
    assert e2e.joined.fault_of is fault_of
