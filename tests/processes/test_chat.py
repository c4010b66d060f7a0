"""``slipstream chat``, before a gateway that does what a test says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_gateway import FakeGateway
from slipstream.protocol.messages import Error, Generate, PublicIn

from slipstream import cli

MOST = 6
"""Messages for which the model of these tests has room, an answer included."""


def say_the_number(gateway: FakeGateway, client: bytes, message: PublicIn) -> None:
    """Answer with the number of messages, in the length that their last one asks for."""
    assert isinstance(message, Generate)
    assert message.messages is not None
    asked: Any = message.messages[-1]["content"]
    if len(message.messages) >= MOST or asked == "too long":
        gateway.say(client, Error(code="context_length_exceeded", message="it is too long", id=message.id))
    elif asked == "wrong":
        gateway.say(client, Error(code="invalid_request", message="it is wrong", id=message.id))
    else:
        finish = "length" if asked == "tell me all" else "stop"
        gateway.tokens(client, (message.id, f"#{len(message.messages)}", [1]), finish=finish)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[FakeGateway]:
    gateway = FakeGateway(f"ipc://{tmp_path}/chat", say_the_number)
    yield gateway
    gateway.stop()


def talk(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, *said: str, options: tuple[str, ...] = ()
) -> None:
    """Say one thing after the other."""
    lines = iter(said)

    def next_line(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", next_line)
    assert cli.main(["chat", f"--endpoint={gateway.endpoint}", *options]) == 0


def test_a_talk_that_is_longer_than_the_context_forgets_its_older_half_and_says_so(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(gateway, monkeypatch, *"abcdefg")
    out, err = capsys.readouterr()
    assert out.split() == ["#1", "#3", "#5", "#3", "#5", "#3", "#5"]
    forgotten = "(The context was full: the oldest turns are forgotten, 2 of 3.)"
    assert err.splitlines()[1:] == [forgotten] * 2
    last = gateway.saw(Generate)[-1].messages
    assert [message["content"] for message in last] == ["e", "#5", "f", "#3", "g"]


@pytest.mark.parametrize(("asked", "why"), [("too long", "it is too long"), ("wrong", "it is wrong")])
def test_a_question_that_is_refused_by_itself_changes_nothing(
    gateway: FakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: str,
    why: str,
) -> None:
    talk(gateway, monkeypatch, "a", "b", asked, "c")
    out, err = capsys.readouterr()
    assert out.split() == ["#1", "#3", "#5"]
    assert err.splitlines()[1:] == [f"InvalidRequest: {why}"]


def test_an_answer_that_ends_with_the_context_says_so_and_one_that_ends_as_asked_does_not(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(gateway, monkeypatch, "tell me all", "b")
    assert capsys.readouterr().err.splitlines()[1:] == ["(The context is full: the answer ends here.)"]
    talk(gateway, monkeypatch, "tell me all", options=("--max-tokens=1",))
    assert capsys.readouterr().err.splitlines()[1:] == []
