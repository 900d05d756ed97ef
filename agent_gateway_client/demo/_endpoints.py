"""Creates gateway endpoints through MLflow's REST API."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow.entities import (
    FallbackConfig,
    FallbackStrategy,
    GatewayEndpointModelConfig,
    GatewayModelLinkageType,
)
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.rest_utils import MlflowHostCreds


class Endpoints:
    """The endpoints of one MLflow server, with models of the local provider.

    Args:
        tracking_uri: Base URL of the server.
        provider_url: Base URL of the local model provider.
        credentials: User name and password, if the server requires them.
    """

    def __init__(self, tracking_uri: str, provider_url: str, credentials: tuple[str, str] | None = None) -> None:
        username, password = credentials or (None, None)
        host = MlflowHostCreds(tracking_uri, username=username, password=password)  # type: ignore[no-untyped-call]
        self._store = RestStore(lambda: host)  # type: ignore[no-untyped-call]
        self._provider_url = provider_url
        self._secrets: dict[str, str] = {}

    def create(self, name: str, models: Sequence[str], provider: str, usage_tracking: bool) -> str:
        """Create an endpoint; the first model is the primary one, the others are fallbacks, in order.

        Args:
            name: Name of the endpoint.
            models: Model names, at least one.
            provider: MLflow's name of the provider: ``openai``, ``anthropic``, ``databricks`` or one of
                LiteLLM's.
            usage_tracking: Whether MLflow traces the calls.

        Returns:
            The endpoint's id.
        """
        configs = []
        for order, model in enumerate(models):
            definition = self._store.create_gateway_model_definition(
                name=f"{name}/{order}/{model}",
                secret_id=self._secret(provider),
                provider=provider,
                model_name=model,
            )
            kind = GatewayModelLinkageType.FALLBACK if order else GatewayModelLinkageType.PRIMARY
            configs.append(
                GatewayEndpointModelConfig(
                    model_definition_id=definition.model_definition_id,
                    linkage_type=kind,
                    fallback_order=order - 1 if order else None,
                )
            )
        fallback = FallbackConfig(strategy=FallbackStrategy.SEQUENTIAL, max_attempts=len(models) - 1)
        endpoint = self._store.create_gateway_endpoint(
            name=name,
            model_configs=configs,
            # MLflow's annotation is its protobuf message, but it expects the entity.
            fallback_config=fallback if len(models) > 1 else None,  # type: ignore[arg-type]
            usage_tracking=usage_tracking,
        )
        return str(endpoint.endpoint_id)

    def delete(self, endpoint_id: str) -> None:
        """Delete an endpoint and its model definitions; the experiment with its traces stays."""
        endpoint = self._store.get_gateway_endpoint(endpoint_id=endpoint_id)
        self._store.delete_gateway_endpoint(endpoint_id)
        for mapping in endpoint.model_mappings:
            self._store.delete_gateway_model_definition(mapping.model_definition_id)

    def names(self) -> set[str]:
        """Return the names of all endpoints."""
        return {str(endpoint.name) for endpoint in self._store.list_gateway_endpoints()}

    def _secret(self, provider: str) -> str:
        if provider not in self._secrets:
            name = f"local-{provider}"
            # In a reused database the secret has the address of the last run's provider.
            known = {info.secret_name: info.secret_id for info in self._store.list_secret_infos()}
            auth_config = {"api_base": _api_base(provider, self._provider_url)}
            if secret_id := known.get(name):
                self._store.update_gateway_secret(secret_id, auth_config=auth_config)
            else:
                secret_id = self._store.create_gateway_secret(
                    secret_name=name,
                    secret_value={"api_key": "made-up"},
                    provider=provider,
                    auth_config=auth_config,
                ).secret_id
            self._secrets[provider] = secret_id
        return self._secrets[provider]

    def refresh(self, providers: Sequence[str]) -> None:
        """Set the local provider's current address in the secrets of these providers."""
        for provider in providers:
            self._secret(provider)


def _api_base(provider: str, url: str) -> str:
    # MLflow's Databricks provider adds its own path.
    return url if provider == "databricks" else f"{url}/v1"
