"""What users and configurations name: it stays where it is, however the files behind it are moved."""

import re
import warnings
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest

from agent_gateway_client.errors import ConfigurationError, MissingDependencyError

ROOT = Path(__file__).parents[1]
GUIDES = [
    *ROOT.glob("*.md"),
    *(
        path
        for folder in ("docs", "integrations", "notebooks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".md", ".py", ".ipynb", ".yaml")
    ),
]

P = "agent_gateway_client"
PUBLIC = {
    P: [
        "GatewayCallbackHandler",
        "__version__",
        "instrument",
        "instrument_litellm",
        "show_trace",
        "trace_headers",
        "uninstrument",
        "unwrap",
        "wrap_httpx",
        "wrap_openai",
    ],
    f"{P}.cli": ["main"],
    f"{P}.demo": ["RunningGateway", "start_gateway"],
    f"{P}.demo.provider": ["Provider"],
    f"{P}.errors": [
        "AgentGatewayError",
        "ConfigurationError",
        "MissingDependencyError",
        "NotFoundError",
        "StartError",
    ],
    f"{P}.http": ["instrument", "trace_headers", "uninstrument", "unwrap", "wrap_httpx"],
    f"{P}.langchain": ["GatewayCallbackHandler"],
    f"{P}.litellm": ["instrument_litellm"],
    f"{P}.openai": ["wrap_openai"],
    f"{P}.server": [
        "GatewayTracingMiddleware",
        "GatewayTracingWSGIMiddleware",
        "current_gateway_call",
        "flush",
        "gateway_attempt",
        "gateway_call",
        "relayed",
    ],
    f"{P}.server.asgi": ["GatewayTracingMiddleware"],
    f"{P}.server.call": ["Attempt", "Cost", "GatewayCall", "TokenUsage", "current_gateway_call", "gateway_attempt"],
    f"{P}.server.export": ["Destination", "Exporter", "Finish"],
    f"{P}.server.litellm_proxy": ["mirror"],
    f"{P}.server.mirror": ["mirror"],
    f"{P}.server.mlflow_gateway": ["create_app"],
    f"{P}.server.routes": ["is_model_call"],
    f"{P}.server.shared": ["shared_exporter"],
    f"{P}.server.wsgi": ["GatewayTracingWSGIMiddleware"],
    f"{P}.traces.notebook": ["show_trace"],
    f"{P}.traces": ["joined_calls"],
    f"{P}.traces.read": ["read_joined"],
}
"""The names that each public module has. Modules that are not in here may move at any time."""

CALLBACK = f"{P}.server.litellm_proxy", "mirror"
"""Made when it is first named, as the environment says."""

NAMES = [(module, name) for module, names in PUBLIC.items() for name in names]


def value_of(module: str, name: str) -> Any:
    """Return what a module has by that name, or skip the test where what it needs is not in this environment."""
    try:
        with warnings.catch_warnings():
            # LiteLLM's own imports warn.
            warnings.simplefilter("ignore")
            return getattr(import_module(module), name)
    except ImportError as error:
        missing = error.__context__ if isinstance(error, MissingDependencyError) else error
        # Without one before it, the error comes of a look for the package.
        if missing is not None and getattr(missing, "name", P).partition(".")[0] == P:
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize(("module", "name"), [one for one in NAMES if one != CALLBACK])
def test_a_name_is_where_it_was(module: str, name: str):
    """Each public name can be imported from its module."""
    assert value_of(module, name)


def test_the_line_of_the_proxys_configuration(monkeypatch: pytest.MonkeyPatch):
    """litellm_proxy.mirror is made on demand, which fails where the environment does not say where mirrors go."""
    module, name = CALLBACK
    value_of(module, "LiteLLMProxyMirror")
    monkeypatch.delitem(vars(import_module(module)), name, raising=False)
    for variable in ("MLFLOW_TRACKING_URI", "AGENT_GATEWAY_EXPORTER"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigurationError, match="MLFLOW_TRACKING_URI"):
        value_of(module, name)


@pytest.mark.parametrize("module", [P, f"{P}.http", f"{P}.server", f"{P}.demo"])
def test_what_a_module_offers_is_in_the_list(module: str):
    """A name in ``__all__`` is one that is kept."""
    assert sorted(value_of(module, "__all__")) == sorted(PUBLIC[module])


@pytest.mark.parametrize(
    ("group", "value"),
    [("console_scripts", f"{P}.cli:main"), ("mlflow.app", f"{P}.server.mlflow_gateway:create_app")],
)
def test_an_entry_point_is_a_public_name(group: str, value: str):
    """pip gives the command agent-gateway, and mlflow server --app-name agent-gateway finds the companion."""
    (entry_point,) = metadata.entry_points(group=group, name="agent-gateway")
    assert entry_point.value == value
    assert entry_point.attr in PUBLIC[entry_point.module]


def test_the_commands():
    """The commands of agent-gateway."""
    assert sorted(value_of(f"{P}.cli.app", "app").commands) == ["demo", "doctor", "relay", "run", "trace"]


def named_in(text: str) -> set[str]:
    """Return the dotted paths into the package that a text names, in imports too."""
    found = set(re.findall(rf"\b{P}(?:\.\w+)+", text))
    for module, names in re.findall(rf"from ({P}[\w.]*) import ([\w, ]+)", text):
        found |= {f"{module}.{name.strip()}" for name in names.split(",")}
    return found


def test_what_guides_name_is_in_the_list():
    """README, docs, guides and notebooks name public modules and names, and no others."""
    public = {*PUBLIC, *(f"{module}.{name}" for module, name in NAMES)}
    named = {name: guide for guide in GUIDES for name in named_in(guide.read_text())}
    assert f"{P}.wrap_openai" in named, "names are seen"
    assert {name: guide for name, guide in named.items() if name not in public} == {}
