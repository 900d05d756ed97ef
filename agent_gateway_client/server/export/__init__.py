"""Exports mirrors to the callers' traces: off the request path, bounded, retried, and counted.

An ended call passes these files in this order:

* ``intake``: reads its facts and releases its payload;
* ``waiting``: the queue, bounded in calls, bytes and time;
* ``sender`` and ``delivery``: look up the call's trace and send the mirror there;
* ``mlflow`` and ``otlp``: the destinations; ``totals`` keeps a trace's tokens and cost complete in MLflow;
* ``counts``: the number of calls by outcome.
"""

from agent_gateway_client.server.export.counts import Counts, Reason
from agent_gateway_client.server.export.destination import Destination, Refused, Unavailable
from agent_gateway_client.server.export.exporter import Exporter
from agent_gateway_client.server.export.intake import Finish

__all__ = ["Counts", "Destination", "Exporter", "Finish", "Reason", "Refused", "Unavailable"]
