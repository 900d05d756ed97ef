"""What a real LiteLLM Proxy refuses after it has checked the caller's key: rate limits and budgets.

``test_permissions.py`` has those of MLflow's gateway, ``test_litellm_proxy.py`` has guardrails.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from agent_gateway_client.demo.provider import Provider
from tests.support.e2e import DEADLINE_S, wait_for
from tests.support.litellm_keys import EXPIRED, OVER_BUDGET, RATE_LIMITED, TOKEN_LIMITED, UNLIMITED
from tests.support.litellm_proxy import LiteLLMProxy, configuration
from tests.support.otlp_receiver import Receiver

CANARY = "c4n4ry51d0"
ROOT = Path(__file__).parents[2]


class Limited(NamedTuple):
    """A proxy whose keys have limits, and what it exports."""

    proxy: LiteLLMProxy
    receiver: Receiver

    def ask(self, key: str, model: str, path: str = "/v1/chat/completions", **body: Any) -> tuple[str, httpx.Response]:
        """Send a request in a new trace; returns the trace's id and the answer."""
        trace_id = secrets.token_hex(16)
        headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        body = {"model": model, "messages": [{"role": "user", "content": CANARY}], **body}
        return trace_id, httpx.post(self.proxy.url + path, json=body, headers=headers, timeout=DEADLINE_S)

    def mirror(self, trace_id: str) -> tuple[str, str, str, str]:
        """Return the only span in a trace: its name, error type, HTTP status and description."""
        (span,) = wait_for("the mirror", lambda: self._spans(trace_id))
        facts = {one.key: one.value for one in span.attributes}
        status = str(facts["http.response.status_code"].int_value)
        return span.name, facts["error.type"].string_value, status, span.status.message

    def _spans(self, trace_id: str) -> list[Any]:
        return [span for span in self.receiver.spans if span.trace_id.hex() == trace_id]

    def nothing_of(self, *trace_ids: str) -> bool:
        """Make a call that is served, and return whether its mirror is there and none of the earlier calls'."""
        last, answer = self.ask(UNLIMITED, "chat")
        assert answer.status_code == 200
        # Mirrors are sent in the order in which their calls ended.
        wait_for("the last mirror", lambda: self._spans(last))
        return not any(map(self._spans, trace_ids))


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limited]:
    with Provider() as provider, Receiver() as receiver:
        config = configuration(provider.url)
        config["general_settings"] |= {
            "custom_auth": "tests.support.litellm_keys.check",
            "custom_auth_run_common_checks": True,
        }
        config["litellm_settings"]["enable_post_custom_auth_checks"] = True
        config["router_settings"]["optional_pre_call_checks"] = ["enforce_model_rate_limits"]
        once = {"model": "openai/gpt-4o-mini", "api_base": f"{provider.url}/v1", "api_key": "none", "rpm": 1}
        config["model_list"].append({"model_name": "once", "litellm_params": once})
        environment = {
            "AGENT_GATEWAY_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        with LiteLLMProxy(tmp_path_factory.mktemp("limited"), config, **environment) as proxy:
            yield Limited(proxy, receiver)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    ("key", "says"),
    [(RATE_LIMITED, "Limit type: requests"), (TOKEN_LIMITED, "Limit type: tokens"), (OVER_BUDGET, "ExceededBudget")],
)
def test_a_limit_of_the_key(key: str, says: str, stream: bool, limited: Limited):
    """The refusal is mirrored with its status, without an attempt and without LiteLLM's message."""
    trace_id, answer = limited.ask(key, "chat", stream=stream)
    assert says in answer.text
    status = str(answer.status_code)
    assert status in ("422", "429")
    assert limited.mirror(trace_id) == ("gateway/chat", status, status, "")
    sent = b"".join(request.payload for request in limited.receiver.requests)
    assert [word for word in (says, CANARY, key) if word.encode() in sent] == []


def test_a_limit_of_the_deployment(limited: Limited):
    """A deployment's rate limit is mirrored too."""
    assert limited.ask(UNLIMITED, "once")[1].status_code == 200
    trace_id, answer = limited.ask(UNLIMITED, "once")
    assert answer.status_code == 429
    assert limited.mirror(trace_id) == ("gateway/once", "429", "429", "")


@pytest.mark.parametrize(
    ("path", "name"),
    [("/v1/chat/completions", "chat/completions"), ("/v1/messages", "v1/messages"), ("/v1/embeddings", "embeddings")],
)
def test_a_model_that_the_caller_made_up(path: str, name: str, limited: Limited):
    """The mirror of a key without money is named after the route; a caller's text is in no span."""
    trace_id, answer = limited.ask(OVER_BUDGET, CANARY, path, call_type=CANARY, metadata={"model_group": CANARY})
    status = str(answer.status_code)
    assert "ExceededBudget" in answer.text
    assert limited.mirror(trace_id) == (f"gateway/{name}", status, status, "")
    assert CANARY.encode() not in b"".join(request.payload for request in limited.receiver.requests)


def test_who_is_not_let_in(limited: Limited):
    """A wrong, missing or expired key leaves nothing, whatever the body imitates."""
    notes = {"proxy_server_request": {"headers": {"traceparent": f"00-{'f0' * 16}-{'f0' * 8}-01"}, "method": "POST"}}
    asked = [
        limited.ask(key, "chat", **body)
        for key in ("sk-wrong", "", EXPIRED)
        for body in ({}, notes, {"user_api_key_auth": {"token": "sk"}, "litellm_params": notes})
    ]
    assert {answer.status_code for _, answer in asked} == {401}
    assert limited.nothing_of(*[trace_id for trace_id, _ in asked], "f0" * 16)


def test_other_routes_of_a_key_without_money(limited: Limited):
    """Refused requests that call no model have no mirror."""
    trace_id, answer = limited.ask(OVER_BUDGET, "chat", "/utils/token_counter")
    assert answer.is_error
    assert limited.nothing_of(trace_id)
