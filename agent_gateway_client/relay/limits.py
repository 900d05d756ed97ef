"""Limits on what the relay accepts, and how long it waits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one relay process.

    Attributes:
        body_bytes: Size of a request's body after decompression; a larger one is answered 413. The collector's default.
        bodies_bytes: Total size of the bodies being received at the same time; beyond it requests are answered 429.
        json_containers: Objects and arrays in a JSON body; more are answered 413. Decoded, each takes up to 30 times
            its bytes.
        request_spans: Spans decoded from one request; the rest are rejected.
        span_attributes: Attributes examined per span; the rest are ignored.
        spans: Spans held at the same time; beyond it requests are answered 429.
        trace_spans: Spans held per trace; the rest are dropped.
        settle_seconds: Time between a call's root span and its mirror. Spans that end after the root, or arrive in a
            later batch, are still included.
        wait_seconds: How long a finished call is kept for late spans, and how long a model server's span waits for the
            gateway's spans.
        call_seconds: How long a span is kept without its root: the longest a call may take.
    """

    body_bytes: int = 20 * 1024 * 1024
    bodies_bytes: int = 64 * 1024 * 1024
    json_containers: int = 400_000
    request_spans: int = 20_000
    span_attributes: int = 1_000
    spans: int = 100_000
    trace_spans: int = 5_000
    settle_seconds: float = 2.0
    wait_seconds: float = 10.0
    call_seconds: float = 600.0
