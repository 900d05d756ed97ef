"""All on this machine: a model provider, a real MLflow AI Gateway, and agents that call it."""
