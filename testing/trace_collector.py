"""A collector of traces: takes spans by OTLP over HTTP, as a server sends them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from testing.http_server import serving

PATH = "/v1/traces"
WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """One span; `parent_id` is empty at the root. Times are nanoseconds since 1970."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    error: str
    deployment: str
    """The deployment whose process recorded it."""


class TraceCollector:
    """`url` is the endpoint for a server's settings. `spans` has all spans so far, `headers` those of each request with some."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.headers: list[dict[str, str]] = []
        self.spans: list[CollectedSpan] = []

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        """One export."""
        self.headers.append(headers)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            deployment = _values(resource.resource.attributes).get("deployment", "")
            for scope in resource.scope_spans:
                self.spans += [_collected(span, deployment) for span in scope.spans]

    def trace(self, trace_id: str, *names: str) -> list[CollectedSpan]:
        """The spans of a trace, in the order of their starts, once it has all those names."""
        until = time.monotonic() + WITHIN_S
        while True:
            spans = [span for span in self.spans if span.trace_id == trace_id]
            if set(names) <= {span.name for span in spans}:
                return sorted(spans, key=lambda span: span.start_ns)
            assert time.monotonic() < until, f"only {[span.name for span in spans]} came"
            time.sleep(0.05)


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def _collected(span: Any, deployment: str) -> CollectedSpan:
    return CollectedSpan(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _values(span.attributes),
        span.status.message,
        deployment,
    )


@contextmanager
def trace_collector() -> Iterator[TraceCollector]:
    """A collector on a free port of 127.0.0.1, in a thread, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == PATH:
                collector.take(body, {name.lower(): value for name, value in self.headers.items()})
            self.send_response(200 if self.path == PATH else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Not to stderr."""

    with serving(Handler) as url:
        collector = TraceCollector(url)
        yield collector
