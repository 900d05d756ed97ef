"""What an operator sees of the companion: one line at the start, metrics, and the status.

All of it is counted in the exporter's threads or on demand, and nothing of it is done while a call is served.

* ``metrics``: the exporter's counts as OpenTelemetry's metrics;
* ``prometheus``: the same for Prometheus, added up over the workers of a gateway;
* ``companion``: what a worker is: version, destination, who may join; its first line in the log, and its status;
* ``pages``: ``GET /agent-gateway/status`` and ``/agent-gateway/metrics``, and who may read them.
"""
