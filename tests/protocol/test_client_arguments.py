"""Arguments of ``Client``, ``AsyncClient`` and ``Sidecar`` that cannot be: each is named at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from fake_gateway import FakeGateway

from slipstream import AsyncClient, Client, InvalidRequest, Sidecar


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("given", "named"),
    [
        *[({"endpoint": value}, "endpoint") for value in (None, 5, b"ipc:///x", Path("/x"), ["ipc:///x"])],
        *[({"timeout_s": value}, "timeout_s=") for value in (-1, 0, math.nan, "5", None, True, [1])],
        *[({"curve": value}, "curve=") for value in (5, b"x", ["x"])],
    ],
    ids=repr,
)
def test_what_no_client_can_be_made_of_is_named(
    kind: type[Client | AsyncClient], given: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named):
        kind(**cast("Any", {"endpoint": "ipc:///tmp/slipstream-nobody-is-here"} | given))


def test_questions_of_a_wrong_type_are_named(serve: Callable[..., FakeGateway]) -> None:
    gateway = serve()
    with Client(gateway.endpoint) as client:
        for seconds in ("5", True, math.nan, -1):
            with pytest.raises(InvalidRequest, match="seconds="):
                client.trace(seconds)  # type: ignore[arg-type]
        for request_id in ([], None, 5, b"x"):
            with pytest.raises(InvalidRequest, match="request_id="):
                client.abort(request_id)  # type: ignore[arg-type]
        assert client.generate("hello").outputs[0].text == "hello"


@pytest.mark.parametrize("given", [-1, 0, math.nan, "5", None])
def test_a_sidecar_starts_nothing_where_it_may_not_wait(given: Any) -> None:
    with pytest.raises(InvalidRequest, match="start_timeout_s="):
        Sidecar(device="emulated", start_timeout_s=given)


@pytest.mark.parametrize(
    "given", [{"ready_fd": 1}, {"print_config": True}, {"exit_with_parent": False}], ids=str
)
def test_a_sidecar_refuses_what_only_a_command_has_a_choice_in(given: dict[str, Any]) -> None:
    """It would come to nothing, or to a service that is never ready."""
    with pytest.raises(InvalidRequest, match=f"{next(iter(given))} is for the command line"):
        Sidecar(device="emulated", **given)


def test_parameters_of_a_wrong_type_are_told_what_to_give(serve: Callable[..., FakeGateway]) -> None:
    with (
        Client(serve().endpoint) as client,
        pytest.raises(
            InvalidRequest, match=r"params is of type dict; give a SamplingParams\(...\), or a list"
        ),
    ):
        client.generate_many(["x"], {"max_tokens": 2})  # type: ignore[arg-type]


def test_a_sidecar_may_wait_for_ever() -> None:
    with Sidecar(device="emulated", start_timeout_s=math.inf) as sidecar:
        assert sidecar.ready["protocol"] == [1, 0]
