"""Names that several parts of the package share."""

GATEWAY_SPAN_PREFIX = "gateway/"
"""Prefix of the name of a gateway span, before the endpoint. MLflow's own gateway uses it too."""

PROVIDER_SPAN_PREFIX = "provider/"
"""Prefix of the name of an attempt's span, before the provider and the model."""


def mlflow_trace_id(trace_id: int) -> str:
    """Convert a trace id of W3C and OpenTelemetry to MLflow's form."""
    return f"tr-{trace_id:032x}"
