#!/bin/sh
# An OpenTelemetry collector: takes OTLP of many gateways and agents, sends it to one MLflow server.
# Its ports are ROTEL_OTLP_HTTP_ENDPOINT (localhost:4318) and ROTEL_OTLP_GRPC_ENDPOINT (localhost:4317).
agent=${ROTEL_AGENT:-$(python3 -c 'import pathlib, rotel; print(pathlib.Path(rotel.__file__).with_name("rotel-agent"))')}

exec "$agent" start \
    --exporter otlp \
    --otlp-exporter-protocol http \
    --otlp-exporter-endpoint "${MLFLOW_URL:-http://127.0.0.1:5000}" \
    --otlp-exporter-custom-headers "x-mlflow-experiment-id=${MLFLOW_EXPERIMENT_ID:-0}" \
    --otlp-exporter-request-timeout 30s \
    --otlp-exporter-retry-max-elapsed-time 3600s \
    --traces-batch-max-size 1024
