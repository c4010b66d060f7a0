"""Exports the times of requests as spans of OpenTelemetry, over OTLP.

When a request is over, an actor says what there is to tell (``HostAddress.REQUEST_TRACES``). Its host sends it, in a
thread of OpenTelemetry's own, and never waits for the collector.
"""

from __future__ import annotations

import re
import threading
import time

import msgspec

from ..protocol.errors import SlipstreamError

TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""The trace that a request is part of, as W3C's Trace Context has it."""

CLOSE_S = 1.0
"""How long the end of a service waits for the collector to take its last spans."""

Attributes = dict[str, str | int | float | list[str]]


class RequestTrace(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is over. Times are seconds of the host's clock."""

    name: str
    traceparent: str
    """What it is part of; empty: of a trace of its own."""
    begun_at: float
    ended_at: float
    parts: list[tuple[str, float, float]] = []
    """What it went through: name, begin and end of each."""
    attributes: Attributes = {}
    error: str = ""
    """Why it has no whole answer."""


class TraceExporter:
    """Sends spans to the collector; what cannot be sent is dropped, and the log says so."""

    def __init__(self, endpoint: str) -> None:
        """``endpoint`` takes OTLP over HTTP, ``http://127.0.0.1:4318/v1/traces`` for example."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise SlipstreamError(
                "--otlp-traces-endpoint needs the extra \"otel\": pip install 'slipstream[otel]'"
            ) from None
        resource = Resource({SERVICE_NAME: "slipstream"}).merge(OTELResourceDetector().detect())
        self.provider = TracerProvider(resource=resource)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self.tracer = self.provider.get_tracer("slipstream")

    def export(self, trace: RequestTrace) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        zero = time.time_ns() - time.monotonic_ns()

        def at(seconds: float) -> int:
            return zero + round(seconds * 1e9)

        parent = TraceContextTextMapPropagator().extract({"traceparent": trace.traceparent})
        span = self.tracer.start_span(
            trace.name, parent, SpanKind.SERVER, trace.attributes, start_time=at(trace.begun_at)
        )
        inside = set_span_in_context(span)
        for name, begun, ended in trace.parts:
            self.tracer.start_span(name, inside, start_time=at(begun)).end(at(ended))
        if trace.error:
            span.set_status(Status(StatusCode.ERROR, trace.error))
        span.end(at(trace.ended_at))

    def close(self) -> None:
        """Send what is left, as far as that can be done within ``CLOSE_S``."""
        ending = threading.Thread(target=self.provider.shutdown, daemon=True)
        ending.start()
        ending.join(CLOSE_S)
