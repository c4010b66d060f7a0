"""``slipstream top``: a live view of actors, queues and utilisation."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..exit_codes import DONE
from .common import Run
from .connecting import add_endpoint, reach_running
from .extras import need

EVERY_S = 0.5
"""Time from one picture to the next."""


def declare(parser: argparse.ArgumentParser) -> Run:
    add_endpoint(parser)
    parser.epilog = "q or Ctrl-C ends it. Where the output is no terminal, one view is printed."

    def run(found: argparse.Namespace) -> int:
        need("top", "top")
        from rich.console import Console
        from rich.live import Live

        from ..observe.top import View
        from ..protocol.client.snapshot import Observer

        console = Console()
        with reach_running(found) as client:
            observer, view = Observer(client.welcome.model), View(client.endpoint)

            def look():
                snapshot = observer.snapshot(client.actors(), client.stats(), client.trace(observer.seconds))
                return view.of(snapshot)

            if not console.is_terminal:
                look()
                time.sleep(EVERY_S)  # a rate needs two readings
                console.print(look())
                return DONE
            with (
                typed() as key,
                Live(look(), console=console, screen=True, auto_refresh=False) as live,
            ):
                while key(EVERY_S) not in ("q", "Q"):
                    live.update(look(), refresh=True)
        return DONE

    return run


@contextmanager
def typed() -> Iterator[Callable[[float], str]]:
    """A function that waits for a key, at most the given seconds, and returns it; keys are not shown meanwhile. Without
    a terminal to type at, it only waits."""
    import select
    import termios
    import tty

    if not sys.stdin.isatty():

        def wait(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield wait
        return
    before = termios.tcgetattr(sys.stdin)

    def key(seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return sys.stdin.read(1) if ready else ""

    tty.setcbreak(sys.stdin)
    try:
        yield key
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
