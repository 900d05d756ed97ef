"""The names that both halves of the project spell: span name prefixes and MLflow's form of a trace id."""

GATEWAY_PREFIX = "gateway/"
"""A mirror's gateway span is named ``gateway/<endpoint>``."""

PROVIDER_PREFIX = "provider/"
"""A mirror's attempt span is named ``provider/<provider>/<model>``."""


def mlflow_trace_id(trace_id: int) -> str:
    """Return a 128-bit trace id in the form that MLflow gives it."""
    return f"tr-{trace_id:032x}"
