"""Bodies of requests: each has a time, all of them a budget, and none is decoded beyond the bounds of a frame."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Exchange, Script, Scripted, until
from slipstream.actors.http.bodies.requests import ChatBody
from slipstream.actors.http.errors import Problem
from slipstream.actors.http.transport import uploads
from slipstream.actors.http.transport.uploads import decode_body
from slipstream.protocol.limits import MAX_ALL_ITEMS, MAX_CONTAINERS


def upload(*parts: bytes, whole: bool = True, encoding: str = "identity") -> Exchange:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    return Exchange("POST", "/v1/completions", headers, list(parts), whole=whole)


def error_of(exchange: Exchange) -> tuple[int, str]:
    return exchange.answer.status, exchange.answer.json["error"]["message"]


# --- a time ---------------------------------------------------------------------------------------


def test_a_body_that_does_not_come_is_given_up_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "BODY_S", 0.01)
    stalled = upload(b'{"prompt": ', whole=False)
    frontend = Scripted()
    asyncio.run(stalled.run(frontend.app))
    status, message = error_of(stalled)
    assert status == 408
    assert "0.01 s" in message
    assert frontend.service.uploads.open == 0


def test_a_drain_does_not_wait_for_a_body_and_the_end_answers_its_sender() -> None:
    frontend = Scripted()
    stalled = upload(b'{"prompt": ', whole=False)

    async def go() -> None:
        running = asyncio.create_task(stalled.run(frontend.app))
        await until(lambda: frontend.service.uploads.open)
        await asyncio.wait_for(frontend.app.drained(), 5)
        assert not running.done()
        await frontend.app.stop(5)
        await running

    asyncio.run(go())
    assert error_of(stalled) == (503, "the service was stopped before this request was finished")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_worth_no_error() -> None:
    frontend = Scripted()
    broken = upload(b'{"prompt": ', whole=False)
    broken.gone.set()
    asyncio.run(broken.run(frontend.app))  # raises nothing, which uvicorn would write a traceback of
    assert frontend.service.uploads.open == 0


# --- a budget -------------------------------------------------------------------------------------


def test_large_bodies_have_a_budget_together_and_small_ones_need_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "SMALL_BODY_BYTES", 100)
    monkeypatch.setattr(uploads, "MAX_BYTES_ON_THEIR_WAY", 1000)
    frontend = Scripted(Script("a"))
    body = json.dumps({"prompt": "x" * 40}).encode()
    stalled = [upload(b" " * 400, whole=False) for _ in range(2)]
    refused, small, later = upload(b" " * 400, body), upload(body), upload(b" " * 400, body)

    async def go() -> None:
        running = [asyncio.create_task(each.run(frontend.app)) for each in stalled]
        await until(lambda: frontend.service.uploads.bytes == 800)
        await refused.run(frontend.app)
        await small.run(frontend.app)
        for each in stalled:
            each.gone.set()
        await asyncio.gather(*running)
        await later.run(frontend.app)

    asyncio.run(go())
    assert refused.answer.status == 429
    assert "1000" in refused.answer.json["error"]["message"]
    assert int(refused.answer.headers["retry-after"]) >= 1
    assert (small.answer.status, later.answer.status) == (200, 200)
    assert frontend.service.uploads.bytes == 0


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "most", "message"),
    [
        (b"[],", MAX_CONTAINERS, "arrays and objects"),
        (b"[1],", MAX_CONTAINERS, "arrays and objects"),
        (b"{},", MAX_CONTAINERS, "arrays and objects"),
        (b"1,", MAX_ALL_ITEMS, "values"),
        (b'"",', MAX_ALL_ITEMS, "values"),
    ],
)
def test_what_would_take_much_memory_is_refused_before_it_is_decoded(
    part: bytes, most: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = b'{"prompt": [' + part * (most - 1) + part[:-1] + b"]}"
    over = b'{"prompt": [' + part * (most + 1) + part[:-1] + b"]}"
    if message == "values":
        uploads.check_bounds(fits)
    monkeypatch.setattr(uploads.msgspec.json, "decode", pytest.fail)
    with pytest.raises(Problem, match=f"more than {most} {message}"):
        decode_body(over, dict)


@pytest.mark.parametrize("text", ["[]," * 300_000, '\\"{' * 300_000, "\\\\" * 300_000 + "," * 2_000_001])
def test_what_is_written_in_a_text_is_no_container(text: str) -> None:
    body = {"prompt": text, "n": [1, 2, 3]}
    assert decode_body(json.dumps(body).encode(), dict[str, Any]) == body
    assert decode_body(json.dumps(body).encode("utf-8-sig"), dict[str, Any]) == body
    cut = json.dumps(body).encode()[:-20]  # no JSON, and not to be counted wrong for it
    with pytest.raises(Problem, match="no JSON"):
        decode_body(cut, dict[str, Any])


@given(st.text('"\\\\[]{},a', max_size=60), st.integers(1, 9))
def test_strings_are_left_out_wherever_a_piece_ends(text: str, piece: int) -> None:
    expected, inside, escaped = "", False, False
    for char in text:
        if not inside and char != '"':
            expected += char
        elif not inside or (char == '"' and not escaped):
            inside = not inside
        escaped = inside and char == "\\" and not escaped
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads, "PIECE", piece)
        assert b"".join(uploads.without_strings(text.encode())).decode() == expected


def test_a_large_body_is_decoded_beside_the_loop_that_serves_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a decoder is at work, other requests are answered."""
    frontend = Scripted(Script("a"))
    body = json.dumps({"prompt": "x" * uploads.SMALL_BODY_BYTES}).encode()
    large, small = upload(body), upload(b'{"prompt": "x"}')
    decode = uploads.decode_body

    async def go() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def slow(data: bytes | bytearray, kind: Any) -> Any:
            if len(data) > uploads.SMALL_BODY_BYTES:
                asyncio.run_coroutine_threadsafe(done.wait(), loop).result(5)
            return decode(data, kind)

        monkeypatch.setattr(uploads, "decode_body", slow)
        running = asyncio.create_task(large.run(frontend.app))
        await small.run(frontend.app)
        assert not running.done()
        done.set()
        await running

    asyncio.run(go())
    assert (small.answer.status, large.answer.status) == (200, 200)


# --- how it is sent -------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity"])
def test_an_encoded_body_is_refused_by_the_name_of_the_header(encoding: str) -> None:
    refused = upload(b'{"prompt": "x"}', encoding=encoding)
    asyncio.run(refused.run(Scripted().app))
    status, message = error_of(refused)
    assert status == 415
    assert "Content-Encoding" in message
    assert encoding in message
    assert refused.answer.headers["accept-encoding"] == "identity"
    plain = upload(b'{"prompt": "x"}')
    asyncio.run(plain.run(Scripted(Script("a")).app))
    assert plain.answer.status == 200


def test_every_line_of_the_header_counts() -> None:
    twice = upload(b'{"prompt": "x"}')
    twice.scope["headers"].append((b"content-encoding", b"gzip"))
    asyncio.run(twice.run(Scripted().app))
    status, message = error_of(twice)
    assert status == 415
    assert "identity, gzip" in message


def test_a_body_that_is_nested_too_deep_to_be_read_is_not_said_to_be_no_json() -> None:
    nested = b'{"chat_template_kwargs": ' + b'{"a": ' * 50_000 + b"1" + b"}" * 50_001
    with pytest.raises(Problem, match="nested too deep; the limit is 32"):
        decode_body(nested, ChatBody)


# --- UTF-8 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "type", ["application/json", "APPLICATION/JSON;charset=UTF-8", 'application/json; x=1 ; Charset = "utf8"']
)
def test_json_in_utf_8_is_taken_whether_it_is_said_or_not(type: str) -> None:
    body = '{"prompt": "\u00e4", "max_tokens": 1}'.encode()
    assert Scripted(Script("a")).post("/v1/completions", body, content_type=type).status == 200


@pytest.mark.parametrize("charset", ["utf-16", '"ISO-8859-1"', "utf-16le", "us-ascii", ""])
def test_another_charset_is_refused_by_its_name(charset: str) -> None:
    type = f"application/json; charset={charset}"
    reply = Scripted(Script("a")).post("/v1/completions", {"prompt": "a"}, content_type=type)
    assert reply.status == 415
    assert f"charset={charset.strip(chr(34))}; send JSON in UTF-8" in reply.json["error"]["message"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_body_in_another_encoding_is_not_said_to_be_no_json(encoding: str) -> None:
    reply = Scripted(Script("a")).post("/v1/completions", '{"prompt": "a"}'.encode(encoding))
    assert reply.status == 400
    assert "UTF-16 or UTF-32; send it in UTF-8" in reply.json["error"]["message"]


@pytest.mark.parametrize(
    "half", ["\\ud83d", "\\ud83dx", "\\ude00", "\\ud83d\\u0041", "\\uD83D\\ud83d\\ude00"]
)
def test_half_a_character_is_named_and_not_taken_for_a_body_that_is_cut_short(half: str) -> None:
    """What a text becomes in JavaScript that was cut in the middle of an emoji."""
    body = f'{{"prompt": "\\\\ud83d \\ud83d\\ude00 {half}"}}'.encode()
    reply = Scripted().post("/v1/completions", body)
    assert reply.status == 400
    assert f"it has {half[:6]}, half of a character" in reply.json["error"]["message"]
