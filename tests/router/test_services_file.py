"""The file that names the services, whatever is written into it while the router runs, or before."""

from __future__ import annotations

from pathlib import Path

import pytest
from slipstream.actors.router.services_file import MAX_SERVICES, endpoints_in
from slipstream.protocol.errors import InvalidRequest

from slipstream.options.route import RouteOptions
from slipstream.serving.route import router_specs

OWN = "ipc:///tmp/router"


def read(text: str) -> tuple[list[str], list[str]]:
    said: list[str] = []
    return endpoints_in(text, "/there", OWN, said.append), said


def test_the_router_is_no_service_of_its_own() -> None:
    """It would ask itself for what it is asked."""
    found, [told] = read(f"ipc:///tmp/one\n{OWN}\nipc://two\n")
    assert found == ["ipc:///tmp/one", "ipc:///there/two"]
    assert "is that of the router itself; the line is passed over" in told


@pytest.mark.parametrize(
    ("line", "own", "is_own"),
    [
        ("ipc:///tmp/there/../router", OWN, True),
        ("tcp://0.0.0.0:5555", "tcp://127.0.0.1:5555", True),
        ("tcp://127.0.0.1:5555", "tcp://*:5555", True),
        ("tcp://localhost:5555", "tcp://127.0.0.1:05555", True),
        ("tcp://127.0.0.1:5556", "tcp://127.0.0.1:5555", False),
        ("tcp://127.0.0.2:5555", "tcp://127.0.0.1:5555", False),
        ("tcp://10.0.0.7:5555", "tcp://0.0.0.0:5555", False),
        ("tcp://127.0.0.1:5555", OWN, False),
    ],
)
def test_the_router_is_known_by_other_names_too(line: str, own: str, is_own: bool) -> None:
    told: list[str] = []
    assert endpoints_in(line, "/there", own, told.append) == ([] if is_own else [line])
    assert len(told) == is_own


def test_a_service_that_is_written_in_several_ways_is_one() -> None:
    spellings = "".join(f"ipc://{'./' * number}one\n" for number in range(300))
    spellings += "ipc:///tmp/two\nipc:///tmp/./two\nipc:///tmp//two\n"
    assert read(spellings) == (
        ["ipc:///there/one", "ipc:///tmp/two"],
        [],
    )


def test_more_services_than_there_are_sockets_for_are_passed_over() -> None:
    found, [told] = read("".join(f"ipc:///tmp/{number}\n" for number in range(3000)))
    assert found == [f"ipc:///tmp/{number}" for number in range(MAX_SERVICES)]
    assert f"is one more than {MAX_SERVICES}, the limit; the line is passed over, and" in told


def test_lines_that_are_no_endpoints_are_told_of_in_one_line() -> None:
    found, [told] = read("\x00\ufffd" * 10_000 + "\nipc:///tmp/one\nnonsense\nmore\n")
    assert found == ["ipc:///tmp/one"]
    assert told.endswith("the line is passed over, and 2 others")
    assert len(told) < 400


@pytest.mark.parametrize(
    ("services", "why"),
    [
        ([OWN], "is the router itself; it needs an endpoint of its own"),
        ([f"ipc:///tmp/{number}" for number in range(MAX_SERVICES + 1)], "257 services are named"),
    ],
    ids=["itself", "too many"],
)
def test_the_same_is_refused_at_the_start(tmp_path: Path, services: list[str], why: str) -> None:
    file = tmp_path / "services"
    file.write_text("\n".join(services))
    options = RouteOptions(services_file=str(file), endpoint=OWN)
    with pytest.raises(InvalidRequest, match=why):
        router_specs(options, tmp_path)
