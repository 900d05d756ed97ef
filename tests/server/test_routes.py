"""routes.py: which requests are model calls, as listed in docs/providers.md."""

import re
from pathlib import Path

import pytest

from agent_gateway_client.server.routes import _ROUTES, is_model_call, model_in_path, route_of

DOCS = Path(__file__).parents[2] / "docs" / "providers.md"
ROWS = re.findall(r"^\| `([/:][^`]+)` \| (?:`([^`]+)`, (\w+)|not) \|$", DOCS.read_text(), re.MULTILINE)


def test_the_table_is_complete():
    """The table has each mirrored route, and some that are not mirrored."""
    assert {path for path, name, _ in ROWS if name} == set(_ROUTES)
    assert len([path for path, name, _ in ROWS if not name]) >= 5


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(("path", "name", "operation"), ROWS)
def test_a_row_of_the_table(path: str, name: str, operation: str, slash: str):
    """Requests are mirrored or not as in the table, below any prefix and with a trailing slash."""
    asked = ("/gateway/v1beta/models/m" if path.startswith(":") else "/gateway") + path + slash
    assert is_model_call({"method": "POST", "path": asked}) is bool(name)
    assert not is_model_call({"method": "GET", "path": asked})
    assert route_of(asked) == ((name, operation) if name else None)


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1beta/models/gemini-2.0-flash:generateContent", "gemini-2.0-flash"),
        ("/v1/projects/p/publishers/anthropic/models/claude@1:rawPredict", "claude@1"),
        ("/openai/deployments/ours/chat/completions", "ours"),
        ("/openai/deployments/ours", None),
        ("/model/anthropic.claude-v2%3A1/converse-stream", "anthropic.claude-v2%3A1"),
        ("/model/meta.llama/else", None),
        ("/v1/models/a/b:generateContent", None),
        ("/v1/chat/completions", None),
    ],
)
def test_the_model_in_a_path(path: str, model: str | None):
    """Gemini's, Vertex AI's and Bedrock's paths contain the model, and Azure's the deployment."""
    assert model_in_path(path) == model
