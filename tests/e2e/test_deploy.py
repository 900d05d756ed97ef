"""deploy/: the image's command with Compose's environment, on a real PostgreSQL, up to a joined trace."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from agent_gateway_client.demo._endpoints import Endpoints
from agent_gateway_client.demo.provider import Provider
from agent_gateway_client.doctor.checks import Settings
from agent_gateway_client.doctor.examine import examine
from tests.support.backends import Postgres, Running, answers_http, free_port
from tests.support.doctor import ALL

DEPLOY = Path(__file__).parents[2] / "deploy"
GIVEN = {
    "POSTGRES_PASSWORD": "none",
    "MLFLOW_CRYPTO_KEK_PASSPHRASE": "at least thirty-two characters of a test",
}
"""The values that deploy/.env would have."""


def command() -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text()
    parts = [json.loads(re.findall(rf"^{name} (\[.*\])$", text, re.MULTILINE)[0]) for name in ("ENTRYPOINT", "CMD")]
    return [word for part in parts for word in part]


def environment() -> dict[str, str]:
    """The environment of Compose's gateway, with its variables substituted as Compose does."""
    said = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["gateway"]["environment"]

    def value(match: re.Match[str]) -> str:
        return GIVEN.get(match["name"], match["default"] or "")

    pattern = re.compile(r"\$\{(?P<name>[A-Z_]+):(?:-(?P<default>[^}]*)|\?[^}]*)\}")
    return {name: pattern.sub(value, text) for name, text in said.items()}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = str(free_port())
    env = environment()
    assert env["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg://mlflow:none@postgres:5432/mlflow"
    words = [port if word == "5000" else "2" if word == "4" else word for word in command()]
    # The test's own PostgreSQL and port, and a provider on this machine.
    env["MLFLOW_SERVER_ALLOWED_HOSTS"] = env["MLFLOW_SERVER_ALLOWED_HOSTS"].replace("5000", port)
    env |= {
        "MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_GATEWAY_API_BASE_ALLOWED_SCHEMES": "http,https",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    with Postgres() as postgres:
        env["MLFLOW_BACKEND_STORE_URI"] = postgres.url
        words[0] = str(Path(sys.executable).with_name(words[0]))
        address = f"http://127.0.0.1:{port}"
        with Running(tmp_path_factory.mktemp("deploy"), words, answers_http(f"{address}/health"), env):
            yield address


def test_a_call_is_joined(url: str):
    """Every link works, from an agent's span to its mirror in PostgreSQL."""
    provider = Provider().start()
    try:
        endpoints = Endpoints(url, provider.url)
        endpoints.create("chat", ["gpt-4o-mini"], "openai", usage_tracking=True)
        checks = examine(Settings(f"{url}/gateway", "chat", url, patience_s=120))
    finally:
        provider.stop()
    assert [(check.name, check.ok, check.fix) for check in checks] == [(name, True, "") for name in ALL]
