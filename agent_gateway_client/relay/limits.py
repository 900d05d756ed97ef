"""What the relay takes at most, and how long it waits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one relay process.

    Attributes:
        body_bytes: Bytes of a request's body after decompression; more is answered 413. The collector's own default.
        bodies_bytes: Bytes of all bodies that are being received at the same time; more is answered 429.
        json_containers: Objects and arrays in a JSON body; more is answered 413. Each takes up to 30 times its bytes.
        request_spans: Spans read from one request; the rest are rejected.
        span_attributes: Attributes looked at per span; the rest are ignored.
        spans: Spans held at the same time; when there are more, requests are answered 429.
        trace_spans: Spans held of one trace; the rest are dropped.
        settle_seconds: From the end of a gateway's part to its mirror. Spans that end after their root, or come in a
            later batch, are still in it.
        wait_seconds: How long a finished part is kept for pieces that come late, and how long a model server's span
            waits for the gateway's.
        call_seconds: How long a span is kept whose root has not come: as long as a call may take.
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
