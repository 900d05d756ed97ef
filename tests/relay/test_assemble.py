"""Which spans belong to one call, and which of the caller's spans is its parent."""

import itertools

import pytest

from agent_gateway_client.server.call import CLIENT_DISCONNECT, GatewayCall
from agent_gateway_client.server.mirror import Convention, mirror
from tests.support.otlp_spans import (
    CALLER,
    CLIENT,
    INTERNAL,
    LOCAL,
    MODEL,
    REMOTE,
    SERVER,
    UNKNOWN,
    attempt,
    collected,
    engine,
    read,
    root,
    span,
    the_call,
)

LITELLM_V1 = {
    **MODEL,
    "litellm.call_id": "1",
    "llm.request.type": "acompletion",
    "litellm.provider.model": "openai/m",
    "gen_ai.operation.name": "acompletion",
}


def ids(call: GatewayCall) -> list[tuple[str, int, int]]:
    """Return kind, id and parent id of each mirror of a call."""
    return [
        (made.name.partition("/")[0], made.context.span_id, made.parent.span_id)
        for made in mirror(call, Convention.MLFLOW)
        if made.context and made.parent
    ]


def test_the_mirror_hangs_below_the_callers_span():
    """The call has the id, the times and the parent of the gateway's root span."""
    call = the_call(root(1, at=0, lasts=3), attempt(2, at=1))
    assert ids(call) == [("gateway", 1, CALLER), ("provider", 2, 1)]
    assert call.end_time_ns is not None
    assert call.end_time_ns - call.start_time_ns == 3_000_000_000


def test_a_streamed_fallback_that_begins_with_the_request():
    """LiteLLM's first callback reports it so. The attempt that ended first was made first."""
    facts = {"attributes": LITELLM_V1}
    failed, streamed = attempt(2, at=2, lasts=1, failed=True, **facts), attempt(3, at=1, lasts=8, **facts)
    first, second = the_call(root(1, lasts=9), streamed, failed).attempts
    assert (first.span_id, second.span_id) == (2, 3)
    assert second.start_time_ns == first.end_time_ns == failed.end_time_unix_nano


def test_tokens_of_a_client_that_hangs_up():
    """LiteLLM estimates them. The companion's mirrors have what the provider reported."""
    gone, used = {"error.type": "client_disconnect"}, {"gen_ai.usage.input_tokens": 10}
    hung_up = root(1, lasts=9, failed=True, attributes=gone)
    (estimated,) = the_call(hung_up, attempt(2, attributes={**LITELLM_V1, **used})).attempts
    (reported,) = the_call(hung_up, attempt(2, attributes={**MODEL, **used})).attempts
    assert (estimated.usage, reported.usage is None) == (None, False)


def test_a_stream_that_breaks_off():
    """After the first chunk the status is sent, so only the last attempt says that the call failed."""
    streamed = {**MODEL, "gen_ai.response.time_to_first_chunk": 0.2}
    broken = {**streamed, "error.type": "ReadError"}
    whole = the_call(root(1, lasts=9), attempt(2, attributes=streamed))
    cut = the_call(root(1, lasts=9), attempt(2, attributes=broken, failed=True))
    other = the_call(root(1, lasts=9), attempt(2, attributes={**MODEL, "error.type": "ReadError"}, failed=True))
    assert [(call.streaming, call.error_type) for call in (whole, cut, other)] == [
        (True, None),
        (True, "ReadError"),
        (None, None),
    ]


def test_attempts_in_the_order_of_their_start():
    """A fallback comes after the attempt that failed, in whatever order their spans arrive."""
    call = the_call(attempt(3, at=2), root(1, lasts=4), attempt(2, at=1, failed=True))
    assert [one.span_id for one in call.attempts] == [2, 3]
    assert [one.error_type for one in call.attempts] == ["_OTHER", None]


def test_spans_in_between_are_not_mirrored():
    """An attempt below other spans of the gateway still belongs to the call."""
    between = [span(10, 1, "fastapi.dependencies"), span(11, 10, "router")]
    assert ids(the_call(root(1), *between, attempt(2, 11))) == [("gateway", 1, CALLER), ("provider", 2, 1)]


def test_only_the_innermost_call_of_a_model_counts():
    """Two instrumentations of one client produce two nested spans for one attempt. Tokens are counted once."""
    assert ids(the_call(root(1), attempt(2), attempt(3, 2))) == [("gateway", 1, CALLER), ("provider", 3, 1)]


def test_a_gateway_that_sends_one_span():
    """If the root is the model call itself, it becomes both the call and its only attempt, whose id is derived."""
    only = span(1, CALLER, "chat gpt-4o-mini", kind=SERVER, flags=REMOTE, attributes=MODEL)
    first, again = the_call(only), the_call(only)
    (gateway, provider) = ids(first)
    assert gateway == ("gateway", 1, CALLER)
    assert provider[1] not in (1, CALLER)
    assert ids(first) == ids(again)


def test_an_sdk_that_does_not_say_where_the_parent_is():
    """A span of kind INTERNAL without flags, whose parent never arrives, is placed below the caller."""
    call = the_call(span(1, CALLER, "ChatCompletion", kind=INTERNAL, flags=UNKNOWN, attributes=MODEL))
    assert ids(call)[0] == ("gateway", 1, CALLER)


def test_no_caller():
    """If the caller is not traced, the gateway begins a trace of its own, which has no place in the caller's."""
    assert collected(read([span(1, 0, kind=SERVER, flags=LOCAL), attempt(2)])) == []


def test_no_attempt():
    """A request that reached no model is not mirrored: the gateway may have refused the caller."""
    assert collected(read([root(1), span(2, 1, "auth", failed=True)])) == []


def test_an_attempt_whose_root_never_comes():
    """Without the spans in between, the place of an attempt is not certain, so it is dropped."""
    assert collected(read([attempt(2, 11)])) == []


def test_calls_of_one_agent_side_by_side():
    """Each call is below its own span of the caller, and calls of the same span stay apart."""
    spans = [root(1, 100), attempt(2, 1), root(3, 100), attempt(4, 3), root(5, 200), attempt(6, 5)]
    calls = collected(read(spans))
    assert sorted((call.parent.span_id, call.span_id, call.attempts[0].span_id) for call in calls) == [
        (100, 1, 2),
        (100, 3, 4),
        (200, 5, 6),
    ]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_order_of_pieces_does_not_matter(order: tuple[int, ...]):
    """The mirrors do not depend on the batches or the order in which spans arrive."""
    pieces = [root(1), span(10, 1, "router"), attempt(2, 10)]
    (call,) = collected(*(read([pieces[index]]) for index in order))
    assert ids(call) == [("gateway", 1, CALLER), ("provider", 2, 1)]


def test_a_gateway_behind_a_gateway():
    """The second gateway's mirror is below the first one's attempt, even if an unmirrored span made the request."""
    first = [root(1), attempt(2, 1), span(3, 2, "POST", kind=CLIENT)]
    second = [root(4, 3), attempt(5, 4)]
    calls = sorted(collected(read([*first, *second])), key=lambda call: call.span_id)
    assert [ids(call)[0] for call in calls] == [("gateway", 1, CALLER), ("gateway", 4, 2)]


def test_http_status_and_error():
    """A call that was answered with an error status has failed, even if OpenTelemetry leaves the span status unset."""
    call = the_call(root(1, attributes={"http.response.status_code": 400}), attempt(2, failed=True))
    assert (call.http_status, call.error_type) == (400, "400")


def test_what_the_caller_wrote_is_left_out():
    """The root's server.address is the request's Host header."""
    call = the_call(root(1, attributes={"server.address": "canary", "server.port": 1}), attempt(2))
    assert call.server_address is None


def test_a_client_that_hangs_up():
    """FastAPI's span reports it; LiteLLM's root inside it does not."""
    gone = {"error.type": "ConnectionError", "http.response.status_code": 200}
    fastapi = read([root(1, at=0, lasts=9, failed=True, attributes=gone)], scope="fastapi")
    litellm = read([root(2, at=1, lasts=5), attempt(3, 2, at=2)])
    (call,) = collected(fastapi + litellm)
    assert (call.span_id, call.error_type) == (2, CLIENT_DISCONNECT)


def test_a_provider_that_hangs_up_is_not_the_client():
    """A ConnectionError of any other scope is not a disconnect."""
    gone = {"error.type": "ConnectionError", "http.response.status_code": 200}
    assert the_call(root(1, failed=True, attributes=gone), attempt(2)).error_type == "ConnectionError"


def test_an_engine_below_its_attempt():
    """vLLM's span is below the attempt, with its times in the queue, in prefill and in decode, and without tokens."""
    call = the_call(root(1, lasts=9), attempt(2, lasts=8), span(3, 2, "POST", kind=CLIENT), engine(4, 3, at=1, lasts=4))
    assert ids(call)[2] == ("engine", 4, 2)
    facts = dict(mirror(call, Convention.OTEL)[2].attributes or {})
    assert facts == {
        "gen_ai.response.model": "gpt-4o-mini",
        "gen_ai.latency.time_in_queue": 1.25,
        "gen_ai.latency.time_in_model_prefill": 0.5,
        "gen_ai.latency.time_in_model_decode": 2.0,
        "gen_ai.latency.time_to_first_token": 1.75,
    }


def test_an_engine_behind_a_gateway_that_mirrors_by_itself():
    """The companion writes the gateway's mirrors; the relay adds the model server's below the attempt."""
    call = the_call(engine(4, 77))
    assert ids(call) == [("engine", 4, 77)]


@pytest.mark.parametrize(("served", "name"), [("", "engine"), ("meta/llama-3", "engine/meta/llama-3")])
def test_the_model_of_an_engine(served: str, name: str):
    """vLLM's span does not name it. It comes from the resource, which its operator sets, or from the attempt."""
    (made,) = mirror(the_call(engine(4, 77), served_model=served), Convention.MLFLOW)
    assert made.name == name
    *_, below = mirror(the_call(root(1), attempt(2), engine(4, 2), served_model=served), Convention.MLFLOW)
    assert below.name == (name if served else "engine/gpt-4o-mini")


def test_an_engine_that_was_given_the_callers_context():
    """If the gateway forwards the caller's header, the times decide which attempt it was, unless two are possible."""
    spans = [root(1, lasts=9), attempt(2, at=1, lasts=2), attempt(3, at=4, lasts=4)]
    call = the_call(*spans, engine(4, CALLER, at=5))
    assert ids(call)[-1] == ("engine", 4, 3)
    calls = collected(read([*spans, attempt(5, at=4, lasts=4), engine(4, CALLER, at=5)]))
    assert sorted(ids(call)[-1] for call in calls) == [("engine", 4, CALLER), ("provider", 5, 1)]


def test_an_attempt_whose_root_went_to_another_relay():
    """LiteLLM v1's attempts are always directly below the root, so the mirror is correct and the same without it."""
    whole = the_call(root(1), attempt(2, attributes=LITELLM_V1))
    part = the_call(attempt(2, attributes=LITELLM_V1))
    assert ids(part) == [("provider", 2, 1)]
    assert ids(whole)[1:] == ids(part)


def test_spans_that_are_each_others_parents():
    """A cycle, which no honest program sends, is handled."""
    circle = [attempt(2, 3, flags=UNKNOWN), attempt(3, 2, flags=UNKNOWN), engine(4, 4), root(5, 5), attempt(6, 5)]
    for call in collected(read(circle)):
        made = mirror(call, Convention.MLFLOW)
        assert all(one.context and one.parent and one.context.span_id != one.parent.span_id for one in made)
