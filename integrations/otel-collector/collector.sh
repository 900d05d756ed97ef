#!/bin/sh
# An OpenTelemetry collector: receives OTLP from many gateways and sends it to the relay, which writes it to MLflow.
# Its ports are ROTEL_OTLP_HTTP_ENDPOINT (localhost:4318) and ROTEL_OTLP_GRPC_ENDPOINT (localhost:4317).
agent=${ROTEL_AGENT:-$(python3 -c 'import pathlib, rotel; print(pathlib.Path(rotel.__file__).with_name("rotel-agent"))')}

exec "$agent" start \
    --exporter otlp \
    --otlp-exporter-protocol http \
    --otlp-exporter-endpoint "${RELAY_URL:-http://127.0.0.1:4319}" \
    --otlp-exporter-request-timeout 30s \
    --otlp-exporter-retry-max-elapsed-time 3600s \
    --traces-batch-max-size 1024
