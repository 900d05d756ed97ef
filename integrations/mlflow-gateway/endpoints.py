"""Creates the endpoints that agent.py calls. MLflow's UI does the same, under "AI Gateway"."""

import os

from mlflow.entities import (
    FallbackConfig,
    FallbackStrategy,
    GatewayEndpointModelConfig,
    GatewayModelLinkageType,
)
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.rest_utils import MlflowHostCreds

ENDPOINTS = {
    "assistant": ["gpt-4o-mini"],
    "assistant-with-fallback": ["gpt-4o-fail-503", "gpt-4o-mini"],
    "search": ["text-embedding-3-small"],
}
"""Endpoint names, and the provider's models behind them in the order in which they are tried."""

store = RestStore(lambda: MlflowHostCreds(os.environ["MLFLOW_TRACKING_URI"]))
secret = store.create_gateway_secret(
    secret_name="openai",
    secret_value={"api_key": os.environ["OPENAI_API_KEY"]},
    provider="openai",
    auth_config={"api_base": os.environ.get("OPENAI_API_BASE", "https://api.openai.com/v1")},
)
for name, models in ENDPOINTS.items():
    configs = []
    for order, model in enumerate(models):
        definition = store.create_gateway_model_definition(f"{name}/{model}", secret.secret_id, "openai", model)
        kind = GatewayModelLinkageType.FALLBACK if order else GatewayModelLinkageType.PRIMARY
        fallback_order = order - 1 if order else None
        configs.append(GatewayEndpointModelConfig(definition.model_definition_id, kind, fallback_order=fallback_order))
    fallback = FallbackConfig(FallbackStrategy.SEQUENTIAL, max_attempts=len(models) - 1) if len(models) > 1 else None
    store.create_gateway_endpoint(name, configs, fallback_config=fallback, usage_tracking=True)
    print(f"endpoint {name}: {', then '.join(models)}")
