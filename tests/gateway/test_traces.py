"""Spans of requests reach whoever gathers OpenTelemetry's traces, as parts of the trace that a request names."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from processes import until
from slipstream.protocol.errors import InvalidRequest
from slipstream.runtime.request_trace import TRACEPARENT
from web import HELLO, Web

from slipstream import AsyncClient, SamplingParams, Sidecar

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-b7ad6b716920333{number}-0{flag}" for number, flag in ((1, 1), (2, 0)))


class Collector(BaseHTTPRequestHandler):
    """Takes what an exporter sends."""

    spans: list[Any]
    resources: list[Any]

    def do_POST(self) -> None:
        told = ExportTraceServiceRequest()
        told.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in told.resource_spans:
            self.resources.append(resource.resource)
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """To nobody."""


@pytest.fixture(scope="module")
def collected() -> Iterator[tuple[str, type[Collector]]]:
    """The URL of a collector, and what it has."""
    kind = type("Collecting", (Collector,), {"spans": [], "resources": []})
    with HTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", kind
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def service(collected: tuple[str, type[Collector]]) -> Iterator[Sidecar]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with Sidecar(device="emulated", http="127.0.0.1:0", otlp_traces_endpoint=collected[0]) as sidecar:
            yield sidecar


def attributes(span: Any) -> dict[str, Any]:
    """As plain values."""
    found: dict[str, Any] = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


def wait_for(kind: type[Collector], id: str) -> Any:
    """The span of the request that has ``id`` in its id."""

    def found() -> Any:
        spans = [span for span in kind.spans if id in attributes(span).get("gen_ai.response.id", "")]
        return spans[0] if spans else None

    until(lambda: found() is not None, f"the span of {id} was sent")
    return found()


def test_a_chat_is_a_span_of_its_callers_trace_with_what_it_went_through(
    service: Sidecar, collected: tuple[str, type[Collector]]
) -> None:
    web, kind = Web(service.ready["http"]), collected[1]
    body = {"messages": HELLO, "max_tokens": 4, "seed": 1, "temperature": 0.5, "stop": ["never"]}
    answer = web("/v1/chat/completions", body, traceparent=SAMPLED, x_request_id="of-a-trace").json
    span = wait_for(kind, "of-a-trace")
    told = attributes(span)
    assert told["gen_ai.response.id"] == answer["id"], "the same id in answer and trace"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, "b7ad6b7169203331")
    assert span.name == "chat slipstream-bundled"
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.request.max_tokens"] == 4
    assert told["gen_ai.request.stop_sequences"] == ["never"]
    assert told["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == 4
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    parts = [part for part in kind.spans if part.parent_span_id == span.span_id]
    assert [part.name for part in parts] == ["tokenize", "queue", "prefill", "decode"]
    edges = [span.start_time_unix_nano, *(part.end_time_unix_nano for part in parts)]
    assert edges == sorted(edges)
    assert [part.start_time_unix_nano for part in parts] == edges[:-1]
    assert edges[-1] == span.end_time_unix_nano
    assert told["gen_ai.latency.time_to_first_token"] < told["gen_ai.latency.e2e"]
    names = {each.key: each.value.string_value for each in kind.resources[0].attributes}
    assert names["service.name"] == "slipstream"


def test_the_trace_goes_through_zeromq_too_and_an_abort_is_an_error(
    service: Sidecar, collected: tuple[str, type[Collector]]
) -> None:
    async def leave_early() -> None:
        async with AsyncClient(service.endpoint) as client:
            stream = client.generate(
                "Once",
                SamplingParams(max_tokens=500, ignore_eos=True),
                request_id="left",
                traceparent=SAMPLED,
            )
            async for _ in stream:
                break
            await stream.aclose()
            await client.stats()

    asyncio.run(leave_early())
    span = wait_for(collected[1], "left")
    assert span.trace_id.hex() == TRACE
    assert span.name.startswith("text_completion ")
    assert attributes(span)["error.type"] == span.status.message == "abort"
    assert span.status.code == 2


def test_a_request_without_a_trace_begins_one_and_one_that_is_not_sampled_is_not_sent(
    service: Sidecar, collected: tuple[str, type[Collector]]
) -> None:
    web = Web(service.ready["http"])
    for header, id in (
        ({"traceparent": UNSAMPLED}, "unsampled"),
        ({"traceparent": "none"}, "own"),
        ({}, "last"),
    ):
        body = {"messages": HELLO, "max_tokens": 1}
        assert web("/v1/chat/completions", body, x_request_id=id, **header).status == 200
    spans = [wait_for(collected[1], id) for id in ("own", "last")]
    assert all(span.parent_span_id == b"" for span in spans)
    assert len({span.trace_id for span in spans} | {bytes.fromhex(TRACE)}) == 3
    sent = [attributes(span).get("gen_ai.response.id", "") for span in collected[1].spans]
    assert not [id for id in sent if "unsampled" in id]


def test_a_traceparent_that_is_none_is_refused_over_zeromq(service: Sidecar) -> None:
    async def ask() -> None:
        async with AsyncClient(service.endpoint) as client:
            async for _ in client.generate("Once", traceparent="00-1-1-01"):
                raise AssertionError

    with pytest.raises(InvalidRequest, match="traceparent='00-1-1-01' is none"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (SAMPLED, True),
        (SAMPLED.upper(), False),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"ff-{TRACE}-b7ad6b7169203331-01", False),
        (SAMPLED + "-more", False),
    ],
)
def test_what_a_traceparent_is(text: str, good: bool) -> None:
    assert bool(TRACEPARENT.fullmatch(text)) == good


def test_nobody_who_gathers_holds_up_nothing() -> None:
    """The endpoint is closed: requests are answered, and the service ends as quickly as ever."""
    with Sidecar(
        device="emulated", http="127.0.0.1:0", otlp_traces_endpoint="http://127.0.0.1:9/v1/traces"
    ) as sidecar:
        url = f"{sidecar.ready['http']}/health"
        with sidecar.client() as client:
            assert client.generate("Once", SamplingParams(max_tokens=3)).outputs[0].token_ids
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.status == 200
