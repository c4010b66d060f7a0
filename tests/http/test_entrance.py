"""What every request passes: an end with an error, a name that may be asked by, an id, a count."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import pytest
from scripted import Exchange, Script, Scripted, until

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
STOPPED = "the service was stopped before this request was finished"
JSON = {"content-type": "application/json"}


def asked(**fields: object) -> Exchange:
    return Exchange("POST", CHAT, JSON, [json.dumps({"messages": HELLO} | fields).encode()])


# --- a forced end ---------------------------------------------------------------------------------


def test_a_forced_stop_answers_in_openais_form_and_ends_a_stream_with_an_error_event() -> None:
    frontend = Scripted(Script("a", ends=False))
    whole, stream = asked(), asked(stream=True)

    async def go() -> None:
        running = [asyncio.create_task(each.run(frontend.app)) for each in (whole, stream)]
        await until(lambda: len(stream.sent) == 2 and frontend.script.running == 2)
        await frontend.app.stop(5)
        await asyncio.gather(*running)

    asyncio.run(go())
    assert whole.answer.status == 503
    assert whole.answer.json["error"] == {
        "message": STOPPED,
        "type": "server_error",
        "param": None,
        "code": "unavailable",
    }
    *chunks, error, done = stream.answer.events
    assert done == "[DONE]"
    assert error["error"]["message"] == STOPPED
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "a"]
    assert frontend.app.under_way == set()


def test_what_cannot_be_ended_is_cancelled_and_answered_too() -> None:
    """Such as a request whose work is in a thread."""
    frontend = Scripted()
    stuck = asked()

    async def never(*given: object) -> None:
        await asyncio.Event().wait()

    frontend.app.app = never

    async def go() -> None:
        running = asyncio.create_task(stuck.run(frontend.app))
        await until(lambda: frontend.app.under_way)
        await frontend.app.stop(0.01)
        await running

    asyncio.run(go())
    assert stuck.answer.status == 503
    assert stuck.answer.json["error"]["message"] == STOPPED


def test_a_drain_waits_for_what_was_accepted() -> None:
    frontend = Scripted(Script("a", ends=False))
    stream = asked(stream=True)

    async def go() -> None:
        running = asyncio.create_task(stream.run(frontend.app))
        await until(lambda: stream.sent)
        draining = asyncio.create_task(frontend.app.drained())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not draining.done()
        stream.gone.set()
        await running
        await asyncio.wait_for(draining, 5)

    asyncio.run(go())
    assert frontend.script.running == 0


# --- by which name ---------------------------------------------------------------------------------

NAMES = frozenset({"a.example"})


@pytest.mark.parametrize(
    "host",
    [
        *(
            "localhost",
            "LOCALHOST:8000",
            "x.localhost:1",
            "127.0.0.1:8000",
            "10.0.0.7",
            "[::1]:8000",
            "a.example",
        ),
        *("localhost.", "LocalHost.:8000", "x.localhost.", "a.example.:80"),
    ],
)
def test_without_a_key_the_service_answers_to_addresses_and_listed_names(host: str) -> None:
    assert Scripted(hosts=NAMES).get("/version", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "x",
        "localhost..",
    ],
)
@pytest.mark.parametrize("path", ["/version", "/v1/models", "/dashboard/state", "/"])
def test_without_a_key_a_page_cannot_ask_the_service_under_a_name_of_its_own(host: str, path: str) -> None:
    refused = Scripted(hosts=NAMES).get(path, host=host)
    assert refused.status == 421
    assert host in refused.json["error"]["message"]
    assert "--allowed-origins" in refused.json["error"]["message"]


def test_with_a_key_any_name_will_do() -> None:
    frontend = Scripted(api_key="sesame", hosts=frozenset())
    assert frontend.get("/version", host="any.example").status == 200
    assert frontend.get("/v1/models", host="any.example", authorization="Bearer sesame").status == 200
    assert frontend.get("/v1/models", host="any.example").status == 401


def test_the_key_may_be_in_either_header_whatever_the_other_has() -> None:
    """``ANTHROPIC_API_KEY=""`` beside a token is what guides for gateways say; its client then sends both headers."""
    frontend = Scripted(api_key="sesame")
    for headers in (
        {"authorization": "Bearer sesame"},
        {"authorization": "bearer  sesame"},
        {"x_api_key": "sesame"},
        {"authorization": "Bearer sesame", "x_api_key": ""},
        {"authorization": "Bearer sesame", "x_api_key": "none"},
        {"authorization": "Bearer none", "x_api_key": "sesame"},
        {"authorization": "", "x_api_key": "sesame"},
    ):
        assert frontend.get("/v1/models", **headers).status == 200, headers
    for headers in (
        {},
        {"x_api_key": ""},
        {"authorization": "Bearer "},
        {"authorization": "sesame"},
        {"authorization": "Basic sesame"},
        {"authorization": "Bearer none", "x_api_key": "nobody"},
    ):
        assert frontend.get("/v1/models", **headers).status == 401, headers


# --- ids and counts --------------------------------------------------------------------------------


def test_every_answer_has_an_id_and_is_counted_by_its_status() -> None:
    frontend = Scripted(Script("a"), api_key="sesame")
    answers = [
        frontend.get("/version"),
        frontend.get("/nothing", authorization="Bearer sesame"),
        frontend.get("/v1/models"),
        frontend.post(CHAT, b"{", authorization="Bearer sesame"),
        frontend.post(CHAT, {"messages": HELLO}, authorization="Bearer sesame", x_request_id="mine"),
    ]
    assert [answer.status for answer in answers] == [200, 404, 401, 400, 200]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert ids[-1] == "mine"
    assert len(set(ids)) == 5
    assert frontend.service.statuses == {200: 2, 404: 1, 401: 1, 400: 1}


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_service_is_logged_with_the_id_of_the_answer(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The client hears only that it happened, and what to look for."""
    frontend = Scripted(Script("a", finish=RuntimeError("secret")))
    answer = frontend.post(CHAT, {"messages": HELLO, "stream": stream})
    told = answer.events[-2] if stream else answer.json
    assert told["error"]["message"] == "an error of the service; its log says more"
    [record] = [record for record in caplog.records if record.name == "slipstream"]
    id = answer.headers["x-request-id"]
    assert record.getMessage() == f"request {id} (POST {CHAT}) failed, by a fault of the service"
    assert "RuntimeError: secret" in record.__dict__["cause"]
    assert frontend.script.asked["request_id"] == f"chatcmpl-{id}", "and the gateway knows it by the same id"


def test_a_response_that_fails_in_the_background_is_logged_with_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    frontend = Scripted(Script("a", finish=RuntimeError("secret")))

    async def go() -> str:
        asking = Exchange("POST", "/v1/responses", JSON, [b'{"input": "hi", "background": true}'])
        await asking.run(frontend.app)
        await until(lambda: not frontend.service.background)
        return asking.answer.json["id"]

    id = asyncio.run(go())
    [record] = [record for record in caplog.records if record.name == "slipstream"]
    assert record.getMessage() == f"response {id} failed, by a fault of the service"
    assert "RuntimeError: secret" in record.__dict__["cause"]


def test_what_the_caller_did_wrong_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    frontend = Scripted(Script("a"))
    assert frontend.post(CHAT, b"{").status == 400
    assert frontend.get("/nothing").status == 404
    assert [record for record in caplog.records if record.name == "slipstream"] == []


def test_the_id_of_an_answer_holds_that_of_its_request() -> None:
    """So that it is found in traces and logs; overlapping requests may have the same."""
    frontend = Scripted(Script("a"))
    for given, shown in (("mine:1", True), ("x" * 128, True), ("no word", False), ("", False)):
        ids = set()
        for _ in range(2):
            ids.add(frontend.post(CHAT, {"messages": HELLO}, x_request_id=given).json["id"])
            assert frontend.script.asked["request_id"] in ids
        assert len(ids) == 2
        assert all(id.startswith("chatcmpl-") and len(id) <= 100 for id in ids)
        assert all((bool(given) and given[:64] in id) == shown for id in ids)


def test_an_answer_has_its_id_where_anthropics_client_looks_for_it() -> None:
    frontend, path = Scripted(Script("x")), "/v1/messages"
    whole = {"messages": HELLO, "max_tokens": 5}
    for asked_for, body in ((path, whole), (path, {}), (f"{path}/count_tokens", {}), (f"{path}/batches", {})):
        answer = frontend.post(asked_for, body)
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "request-id" not in frontend.post(CHAT, {"messages": HELLO}).headers


def test_the_front_page_is_the_dashboard() -> None:
    answer = Scripted(api_key="sesame").get("/")
    assert (answer.status, answer.headers["location"]) == (307, "/dashboard")


# --- as HTTP has it --------------------------------------------------------------------------------


def test_a_request_of_http_1_1_names_its_host_and_in_its_form() -> None:
    for given in (
        b"",
        b"Host: local host\r\n",
        b"Host: a@localhost\r\n",
        b"Host: localhost:x\r\n",
        b"Host: a/b\r\n",
    ):
        head = [(name.strip().lower(), value.strip()) for name, _, value in [given.partition(b":")] if name]
        for frontend in (Scripted(), Scripted(api_key="sesame"), Scripted(hosts=None)):
            exchange = Exchange("GET", "/version", {}, [b""])
            exchange.scope["headers"] = head
            asyncio.run(exchange.run(frontend.app))
            assert exchange.answer.status == 400, given
            assert "Host" in exchange.answer.json["error"]["message"]
    for host in ("localhost", "localhost:", "127.0.0.1:8000", "[::1]:8000", "a.localhost:80"):
        assert Scripted().get("/version", host=host).status == 200, host


def test_keys_of_a_query_that_gateways_add_are_passed_over() -> None:
    frontend = Scripted()
    assert frontend.get("/v1/models?api-version=2024-10-21").status == 200
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    assert frontend.post("/v1/chat/completions?api-version=2024-10-21", body).status == 200
    old = Exchange("GET", "/version", {}, [b""])
    old.scope |= {"headers": [], "http_version": "1.0"}
    asyncio.run(old.run(Scripted().app))
    assert old.answer.status == 200


def test_every_answer_has_a_date() -> None:
    for path in ("/version", "/nothing"):
        told = parsedate_to_datetime(Scripted().get(path).headers["date"])
        assert abs((told - datetime.now(UTC)).total_seconds()) < 60


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/v1/models/", "../models"),
        ("/v1/models/m/", "../m"),
        ("/dashboard/", "../dashboard"),
    ],
)
def test_a_slash_too_many_leads_to_where_it_was_meant_by_whatever_way_it_came(path: str, place: str) -> None:
    """An absolute place has the scheme and the path behind a proxy, not those before it."""
    answer = Scripted().get(path)
    assert (answer.status, answer.headers["location"]) == (307, place)
    for nowhere in ("/nothing/", "//evil.example/", "/health//"):
        assert Scripted().get(nowhere).status == 404


def test_a_body_in_a_transfer_coding_is_refused_by_its_name() -> None:
    answer = Scripted().post(CHAT, {"messages": HELLO}, transfer_encoding="gzip, chunked")
    assert answer.status == 501
    assert "Transfer-Encoding is 'gzip, chunked'" in answer.json["error"]["message"]
    assert Scripted(Script("a")).post(CHAT, {"messages": HELLO}, transfer_encoding="Chunked").status == 200


# --- pages ----------------------------------------------------------------------------------------


def test_a_page_of_an_allowed_origin_can_ask_where_a_key_is_needed() -> None:
    """Before it sends the key, the browser asks without one whether the page may."""
    frontend = Scripted(Script("a"), api_key="sesame", origins=["https://a.example"])
    asked = {"origin": "https://a.example", "access_control_request_method": "POST"}
    first = frontend.ask("OPTIONS", CHAT, [], asked | {"access_control_request_headers": "authorization"})
    assert (first.status, first.headers["access-control-allow-origin"]) == (200, "https://a.example")
    assert "authorization" in first.headers["access-control-allow-headers"]
    assert frontend.ask("OPTIONS", CHAT, [], asked | {"origin": "https://b.example"}).status == 400
    refused = frontend.post(CHAT, {"messages": HELLO}, origin="https://a.example")
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://a.example")
    readable = refused.headers["access-control-expose-headers"].split(", ")
    assert readable == ["x-request-id", "retry-after"]
    assert frontend.get("/v1/models").status == 401
    assert Scripted(api_key="sesame").ask("OPTIONS", CHAT, [], asked).status == 401
