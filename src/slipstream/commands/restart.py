"""``slipstream restart``: end one actor of a running service and start it again; its requests go on."""

from __future__ import annotations

import argparse
import time

from ..exit_codes import COULD_NOT_START, DONE, FAILED, USAGE
from .common import Exit, Run
from .connecting import add_endpoint, the_running_service

EVERY_S = 0.02
"""Pause between two looks at whether the actor is back."""

READY_WITHIN_S = 600.0
"""For the new incarnation; a large model takes its time."""


def declare(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("actor", metavar="ACTOR", help="executor, scheduler, …, as slipstream top names them")
    add_endpoint(parser)
    parser.epilog = "Only for who runs the service, on its machine. Requests go on as after a death."

    def run(found: argparse.Namespace) -> int:
        from ..protocol.errors import InvalidRequest, ServiceUnavailable
        from ..status import ask, find

        try:
            control = find(found.endpoint or the_running_service())
            begun = time.monotonic()
            before = ask(control, restart=found.actor)["actors"][found.actor]
            while time.monotonic() < begun + READY_WITHIN_S:
                now = ask(control)["actors"][found.actor]
                if now["epoch"] != before["epoch"] and now["state"] == "ready":
                    seconds = time.monotonic() - begun
                    print(f"{found.actor}: pid {before['pid']} → {now['pid']}, ready after {seconds:.2f} s")
                    return DONE
                time.sleep(EVERY_S)
        except InvalidRequest as error:
            raise Exit(USAGE, str(error)) from None
        except ServiceUnavailable as error:
            raise Exit(COULD_NOT_START, str(error)) from None
        raise Exit(FAILED, f"{found.actor} is not ready after {READY_WITHIN_S:g} s")

    return run
