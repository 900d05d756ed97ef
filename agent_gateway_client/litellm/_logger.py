# mypy: allow-untyped-calls
# LiteLLM's logger has no types.
"""Autolog's logger for LiteLLM, adapted to a call whose span is already open."""

import threading
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

import mlflow
from litellm.integrations.custom_logger import CustomLogger
from litellm.integrations.mlflow import MlflowLogger
from mlflow.tracking import MlflowClient

from agent_gateway_client._log import logger
from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.w3c import TraceContext

_USAGE = "mlflow.chat.tokenUsage"

_NAMES = {
    "input_tokens": ("input_tokens", "prompt_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens"),
    "total_tokens": ("total_tokens",),
}
"""MLflow's name of each token count, and its names in the APIs."""


@lru_cache(maxsize=1)
def _client(tracking_uri: str) -> Any:
    return MlflowClient(tracking_uri)


class LiveLogger(MlflowLogger):
    """Starts one call's span as autolog would, and later fills it in and ends it with autolog's own code.

    Args:
        open_span: Returns the call's span if it is open, else ``None``; then nothing is logged.
    """

    def __init__(self, open_span: Callable[[], Any]) -> None:
        # MlflowLogger's constructor creates a client for every call, which takes longer than all our other work.
        CustomLogger.__init__(self)
        self._client = _client(mlflow.get_tracking_uri())
        self._stream_id_to_span: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._open_span = open_span
        self._usage: dict[str, int] = {}

    def begin(self, logging: Any, parent: TraceContext | None, start_time: datetime) -> Any:
        """Start the span with autolog's name and type, as a child of ``parent`` if that is an MLflow span."""
        call_type = logging.model_call_details.get("call_type") or logging.call_type
        arguments: dict[str, Any] = {
            "name": f"litellm-{call_type}",
            "span_type": self._get_span_type(call_type),
            "start_time_ns": int(start_time.timestamp() * 1e9),
        }
        if parent is not None:
            try:
                return self._client.start_span(
                    trace_id=mlflow_trace_id(parent.trace_id), parent_id=f"{parent.span_id:016x}", **arguments
                )
            except Exception:
                logger.debug("The active span is not one of this process' MLflow", exc_info=True)
        return self._client.start_trace(**arguments)

    def fill_in(self, logging: Any, result: Any, error: BaseException | None) -> None:
        """Do what autolog does when LiteLLM logs the call. For a stream, ``result`` is the complete response."""
        details = {
            **logging.model_call_details,
            # Copied, because autolog removes the parameters that it has read.
            "optional_params": dict(logging.model_call_details.get("optional_params") or {}),
            # LiteLLM has not created it yet; an existing one belongs to an earlier attempt.
            "standard_logging_object": None,
            "stream": False,
            "exception": error,
        }
        log = self.log_success_event if error is None else self.log_failure_event
        log(details, result, logging.start_time, datetime.now())

    def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Log the call; for a stream, only once it is complete."""
        if kwargs.get("stream"):
            response_obj = kwargs.get("complete_streaming_response") or kwargs.get("async_complete_streaming_response")
            if response_obj is None:
                return
            kwargs = {**kwargs, "stream": False}
        if self._open_span() is not None:
            self._usage = usage_of(response_obj)
            super().log_success_event(kwargs, response_obj, start_time, end_time)

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Log the call."""
        self.log_success_event(kwargs, response_obj, start_time, end_time)

    def log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Log the call."""
        if self._open_span() is not None:
            super().log_failure_event(kwargs, response_obj, start_time, end_time)

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Log the call."""
        self.log_failure_event(kwargs, response_obj, start_time, end_time)

    def _start_span_or_trace(self, kwargs: Any, start_time: Any) -> Any:
        span = self._open_span()
        span.set_inputs(self._construct_input(kwargs))
        span.set_attributes(self._extract_attributes(kwargs))
        return span

    def _extract_attributes(self, kwargs: Any) -> dict[str, Any]:
        attributes: dict[str, Any] = super()._extract_attributes(kwargs)
        usage = {**(attributes.pop(_USAGE, None) or {}), **self._usage}
        # LiteLLM reports 0 for a call without usage, which would hide the gateway's counts.
        return {**attributes, _USAGE: usage} if usage.get("total_tokens") else attributes


def usage_of(result: Any) -> dict[str, int]:
    """Return the token counts of a LiteLLM result by MLflow's names; empty if it reports none."""
    usage = _field(result, "usage") or _field(_field(result, "response"), "usage")
    found = {
        name: value
        for name, names in _NAMES.items()
        if (value := next((v for n in names if isinstance(v := _field(usage, n), int)), None)) is not None
    }
    if not found:
        return found
    found.setdefault("total_tokens", sum(found.values()))
    details = _field(usage, "prompt_tokens_details") or _field(usage, "input_tokens_details")
    cached = _field(usage, "cache_read_input_tokens") or _field(details, "cached_tokens")
    written = _field(usage, "cache_creation_input_tokens")
    for name, value in (("cache_read_input_tokens", cached), ("cache_creation_input_tokens", written)):
        if isinstance(value, int):
            found[name] = value
    return found


def _field(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
