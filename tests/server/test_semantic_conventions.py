"""mirror.py: the OpenTelemetry names in exports, compared with its released package."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
from opentelemetry.semconv import _incubating, attributes
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from agent_gateway_client.server.call import Attempt, EngineRun, Operation
from agent_gateway_client.server.mirror import _WELL_KNOWN_PROVIDERS, Convention, mirror
from tests.support.server import attributes_of, facts_of, full_call

OURS = ("mlflow.", "agent_gateway.", "endpoint_", "server_url")
"""Names from MLflow and from this package."""


RENAMED = {"gen_ai.usage.cache_write.input_tokens"}
"""Names in the GenAI conventions' own repository (v0.1.0) that the released package lacks."""


def modules() -> Iterable[str]:
    for package in (attributes, _incubating):
        folder = Path(package.__path__[0])
        for path in sorted(folder.rglob("*_attributes.py")):
            yield ".".join((package.__name__, *path.relative_to(folder).with_suffix("").parts))


@pytest.fixture(scope="module")
def released() -> set[str]:
    """Every attribute of the package, the stable and the incubating ones."""
    names = [value for module in modules() for value in vars(import_module(module)).values()]
    return {name for name in names if isinstance(name, str)}


@pytest.mark.parametrize("convention", Convention)
def test_every_name_is_released(convention: Convention, released: set[str]):
    """Every exported name is a released attribute, or in a namespace that is not OpenTelemetry's."""
    keys = {key for span in mirror(full_call(), convention) for key in attributes_of(span)}
    keys |= {key for span in mirror(full_call(), convention) for event in span.events for key in event.attributes or {}}
    conventional = {key for key in keys if not key.startswith(OURS)}
    assert len(conventional) >= 5
    assert conventional - RENAMED <= released


def test_operations_are_well_known():
    """Each model operation is one of OpenTelemetry's well-known values."""
    known = {operation.value for operation in gen_ai_attributes.GenAiOperationNameValues}
    assert set(get_args(Operation)) - {"other"} <= known
    for operation in get_args(Operation):
        gateway, *attempts = mirror(full_call(operation=operation), Convention.OTEL)
        assert "gen_ai.operation.name" not in attributes_of(gateway)
        for span in attempts:
            said = attributes_of(span).get("gen_ai.operation.name")
            assert said == (None if operation == "other" else operation)


def test_one_inference_for_each_attempt():
    """Only an attempt is an inference in OpenTelemetry: with an operation, a requested model, and both in its name.

    Back ends count a span with one of them as an inference, and would count the gateway's and the model server's too.
    """
    telling = {"gen_ai.operation.name", "gen_ai.request.model", "gen_ai.provider.name"}
    gateway, *attempts, engine = mirror(full_call(engine_runs=[EngineRun(0xD, "llama")]), Convention.OTEL)
    for span in (gateway, engine):
        assert not telling & set(attributes_of(span)), span.name
    assert [span.name for span in attempts] == ["chat gpt-4o", "chat claude-3-5-haiku"]
    for span in attempts:
        assert telling <= set(attributes_of(span))


@pytest.mark.parametrize(
    ("model", "response_model", "mlflow", "otel", "name"),
    [
        ("m", "m-1", ("m", "m-1"), ("m", "m-1"), "chat m"),
        ("m", "m", ("m", None), ("m", "m"), "chat m"),
        ("m", None, ("m", None), ("m", None), "chat m"),
        (None, "m-1", ("m-1", None), (None, "m-1"), "chat m-1"),
        (None, None, (None, None), (None, None), "chat"),
    ],
)
def test_the_requested_and_the_answered_model(
    model: str | None,
    response_model: str | None,
    mlflow: tuple[str | None, str | None],
    otel: tuple[str | None, str | None],
    name: str,
):
    """These are two facts. MLflow shows one model, and gets the other if it differs."""
    call = full_call(attempts=[Attempt("openai", model, response_model=response_model)])
    facts = facts_of(mirror(call, Convention.MLFLOW)[1])
    assert (facts.get("mlflow.llm.model"), facts.get("gen_ai.response.model")) == mlflow
    attempt = mirror(call, Convention.OTEL)[1]
    said = attributes_of(attempt)
    assert (said.get("gen_ai.request.model"), said.get("gen_ai.response.model")) == otel
    assert attempt.name == name


def test_providers_are_well_known():
    """Over OTLP a provider has OpenTelemetry's name, even if MLflow and LiteLLM use another."""
    known = {provider.value for provider in gen_ai_attributes.GenAiProviderNameValues}
    assert set(_WELL_KNOWN_PROVIDERS.values()) <= known
    assert not set(_WELL_KNOWN_PROVIDERS) & known
    names = {"openai": "openai", "Bedrock": "aws.bedrock", "vertex ai": "gcp.vertex_ai", "my own": "my_own"}
    call = full_call(attempts=[Attempt(provider=name, model="m") for name in names])
    _, *spans = mirror(call, Convention.OTEL)
    assert [attributes_of(span)["gen_ai.provider.name"] for span in spans] == list(names.values())
    named = mirror(call, Convention.MLFLOW)[1:]
    assert [span.name for span in named] == [f"provider/{name.replace(' ', '_')}/m" for name in names]


def test_the_names_that_litellm_has():
    """LiteLLM or MLflow's gateway has each provider of the table under that name."""
    litellm = pytest.importorskip("litellm", reason="litellm is not in this environment's constraints file")
    names = {provider.value for provider in litellm.LlmProviders}
    assert set(_WELL_KNOWN_PROVIDERS) - names == {"amazon_bedrock"}
