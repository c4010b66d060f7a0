"""How a command reaches a service: one that runs, or one of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..exit_codes import COULD_NOT_START, USAGE
from ..protocol.printable import printable_lines
from .common import Exit
from .extras import need

if TYPE_CHECKING:
    from ..protocol.client.blocking import Client


def add_service(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the service or model, and those of sampling."""
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--endpoint", metavar="E", help="of a running service; left out: a service just for this"
    )
    place.add_argument(
        "--model", metavar="M", help="for a service just for this; left out: the bundled model"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of an answer")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="0: always the most likely token (default 1)"
    )


def sampling(found: argparse.Namespace) -> Any:
    from ..protocol.sampling import SamplingParams

    temperature = 1.0 if found.temperature is None else found.temperature
    return SamplingParams(max_tokens=found.max_tokens, temperature=temperature)


def for_standard_output(text: str) -> str:
    """A model's text: as it is where a program reads it, and so that it is harmless where a terminal shows it."""
    return printable_lines(text) if sys.stdout.isatty() else text


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--endpoint",
        metavar="E",
        help="of the service; left out: SLIPSTREAM_ENDPOINT, or else the one service of yours that runs here",
    )


@contextmanager
def reach_running(found: argparse.Namespace) -> Iterator[Client]:
    """A client of a service that runs already."""
    from ..protocol.client.blocking import Client
    from ..protocol.errors import InvalidRequest, SlipstreamError

    try:
        client = Client(found.endpoint or the_running_service())
    except InvalidRequest as error:
        raise Exit(USAGE, str(error)) from None
    except SlipstreamError as error:
        raise Exit(COULD_NOT_START, str(error)) from None
    with client:
        yield client


def the_running_service() -> str:
    """The endpoint of the service that is meant where none is named."""
    import os

    from ..protocol.endpoints import running_services

    named = os.environ.get("SLIPSTREAM_ENDPOINT")
    if named:
        return named
    running = running_services()
    if len(running) != 1:
        none = "no service of yours is running here that was given no --endpoint of its own"
        which = f"which one? {', '.join(running)}" if running else none
        raise Exit(USAGE, f"give --endpoint: {which}")
    return running[0]


@contextmanager
def reach(found: argparse.Namespace, name: str) -> Iterator[Client]:
    """A client of the service that was asked for, which is started if it is not there."""
    from contextlib import ExitStack

    from ..protocol.client.blocking import Client
    from ..protocol.errors import InvalidRequest, SlipstreamError

    with ExitStack() as stack:
        try:
            if found.endpoint is not None:
                client = stack.enter_context(Client(found.endpoint))
            else:
                need(name, "engine", "or give --endpoint")
                from ..sidecar import Sidecar

                client = stack.enter_context(stack.enter_context(Sidecar(found.model)).client())
        except InvalidRequest as error:
            raise Exit(USAGE, str(error)) from None
        except SlipstreamError as error:
            raise Exit(COULD_NOT_START, str(error)) from None
        yield client
