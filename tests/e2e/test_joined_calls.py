"""joined_calls(): the calls of a real gateway as a pandas frame."""

from typing import Any

import mlflow
import pandas
import pytest

from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.errors import NotFoundError
from agent_gateway_client.traces import joined_calls
from agent_gateway_client.traces.calls import COLUMNS
from tests.support.e2e import USER, openai_client

MESSAGES: Any = [USER]


def test_the_frame(gateway: DemoGateway, tracing: str):
    """The last call is there without waiting by hand; an unknown price is NaN."""
    mlflow.set_experiment("joined calls")
    with openai_client(gateway) as client, mlflow.start_span("agent") as agent:
        for endpoint in ("fallback", "chat"):
            client.chat.completions.create(model=endpoint, messages=MESSAGES)
    frame = joined_calls("joined calls", tracking_uri=gateway.tracking_uri)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == COLUMNS
    assert list(frame["trace_id"].unique()) == [agent.trace_id]
    assert list(zip(frame["endpoint"], frame["attempt"], frame["status"], strict=True)) == [
        ("fallback", 1, "ERROR"), ("fallback", 2, "OK"), ("chat", 1, "OK")
    ]  # fmt: skip
    assert list(frame["cost"].isna()) == [True, False, False]
    assert pandas.isna(frame.loc[0, "input_tokens"])
    assert set(frame["agent_span"]) == {"agent"}
    with pytest.raises(NotFoundError, match="has no experiment 'nobody'"):
        joined_calls("nobody", tracking_uri=gateway.tracking_uri)
