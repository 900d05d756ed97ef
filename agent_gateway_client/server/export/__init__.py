"""Where mirrors go: off the request path, into the caller's trace and no other, bounded, retried, counted.

A call that has ended goes through these files in this order:

* ``intake``: its facts are read and its payload is let go;
* ``waiting``: it waits, bounded in number, bytes and time, until it is due;
* ``sender`` and ``delivery``: the store is asked where the call's trace is, and the mirror is sent there;
* ``mlflow`` and ``otlp``: the destinations; ``totals`` keeps a trace's tokens and cost complete in MLflow;
* ``counts``: what became of it.
"""

from agent_gateway_client.server.export.counts import Counts, Reason
from agent_gateway_client.server.export.destination import Destination, Refused, Unavailable
from agent_gateway_client.server.export.exporter import Exporter
from agent_gateway_client.server.export.intake import Finish

__all__ = ["Counts", "Destination", "Exporter", "Finish", "Reason", "Refused", "Unavailable"]
