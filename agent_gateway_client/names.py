"""The names that every part of the package has to spell alike: of a mirror's spans, and of a trace in MLflow."""

GATEWAY_SPAN_PREFIX = "gateway/"
"""Begins the name of the span of a gateway call; the endpoint's name follows. MLflow's own gateway does the same."""

PROVIDER_SPAN_PREFIX = "provider/"
"""Begins the name of the span of a provider attempt; the provider and the model follow."""


def mlflow_trace_id(trace_id: int) -> str:
    """Return MLflow's id of the trace that has this id in W3C's headers and in OpenTelemetry."""
    return f"tr-{trace_id:032x}"
