"""How the doctor judges a relay by its counts. tests/e2e/test_doctor_relay.py examines real relays."""

from typing import Any

import pytest

from agent_gateway_client.doctor.checks import Broken
from agent_gateway_client.doctor.relay import Counts, Relay, check_mirrors, check_received, check_sending, check_spans
from agent_gateway_client.errors import ConfigurationError

URL, MLFLOW = "http://relay:4318", "http://mlflow:5000"
NOTHING = Counts(f"MLflow at {MLFLOW}", None, 0, 0, 0, 0, 0, 0, 0, 0, 0, {})


def counts(**facts: Any) -> Counts:
    return NOTHING._replace(**facts)


CAME = {"requests": 1, "recognised": 1, "unrecognised": 11}
FOUND = {**CAME, "mirrored": 1}


@pytest.mark.parametrize(
    ("facts", "said", "fix"),
    [
        ({}, "No span of the gateway reached the relay", f"OTEL_EXPORTER_OTLP_ENDPOINT={URL}"),
        ({"without_token": 2}, "without its token", "OTEL_EXPORTER_OTLP_HEADERS"),
        ({"requests": 1, "unrecognised": 3}, "none of 3 is a model call", "gen_ai.*"),
        (CAME, "belong to no caller's trace", "OTEL_PROPAGATORS=tracecontext"),
        (
            {**FOUND, "dropped": {"unknown_trace": 1}},
            "the store never received",
            "the MLflow server that the relay writes to",
        ),
        ({**FOUND, "dropped": {"refused": 1}}, "the store refused them", "docs/operating.md"),
        ({**FOUND, "waiting": 1, "problem": "HTTP 403"}, "HTTP 403", "Give the relay's user write"),
        ({**FOUND, "waiting": 1}, "is waiting for the agent's trace. The relay writes to MLflow", "--tracking-uri"),
        ({**FOUND, "sent": 1}, "elsewhere. The relay writes to MLflow at http://mlflow:5000", "--tracking-uri"),
    ],
)
def test_how_far_the_spans_of_a_call_came(facts: dict[str, Any], said: str, fix: str):
    """Without a mirror, the relay's counts since the probe show which link is broken."""
    with pytest.raises(Broken) as broken:
        check_spans(counts(**facts), None, URL, "http://localhost:5000")
    assert said in broken.value.detail
    assert fix in broken.value.fix


@pytest.mark.parametrize(
    "facts", [{"sent": 9, "dropped": {"unknown_trace": 1}}, {"sent": 9, "waiting": 3}, {}], ids=str
)
def test_mirrors_of_most_calls(facts: dict[str, Any]):
    """A few waiting or dropped calls are normal: an agent may end before it sends its trace."""
    assert f"{facts.get('sent', 0)} calls are mirrored" in check_mirrors(counts(**facts))


@pytest.mark.parametrize(
    "facts", [{"dropped": {"unknown_trace": 1}}, {"sent": 1, "dropped": {"refused": 2}}, {"waiting": 1}], ids=str
)
def test_mirrors_of_few_calls(facts: dict[str, Any]):
    with pytest.raises(Broken):
        check_mirrors(counts(**facts))
    assert check_sending(counts(**facts))


def test_what_came_in():
    """Receiving nothing is not a mistake; attempts without their root, and spans that were given up, are reported."""
    seen = check_received(counts(requests=1, without_token=2), URL)
    assert "No span has arrived" in seen
    assert "2 requests had no token" in seen
    seen = check_received(counts(**FOUND, orphaned=2, given_up=3, without_token=4), URL)
    for text in ("1 spans are model calls", "route by trace id", "--max-spans", "4 requests had no token"):
        assert text in seen


def test_since():
    """Counters are differences; the number of waiting calls is the current one."""
    before = counts(requests=5, sent=3, waiting=2, dropped={"refused": 1, "unknown_trace": 2})
    now = counts(requests=7, sent=3, waiting=4, dropped={"refused": 1, "unknown_trace": 3}, problem="HTTP 500")
    new = now.since(before)
    assert (new.requests, new.sent, new.waiting, new.problem) == (2, 0, 4, "HTTP 500")
    assert new.dropped == {"unknown_trace": 1}


def test_a_token_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AGENT_GATEWAY_RELAY_TOKEN", "short")
    with pytest.raises(ConfigurationError, match="AGENT_GATEWAY_RELAY_TOKEN"):
        Relay(URL)
