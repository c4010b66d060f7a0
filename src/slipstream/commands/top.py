"""``slipstream top``: a live view of actors, queues and utilisation."""

from __future__ import annotations

import argparse
import time

from .common import DONE, Run, add_endpoint, need, reach_running

EVERY_S = 0.5


def declare(parser: argparse.ArgumentParser) -> Run:
    add_endpoint(parser)
    parser.epilog = "Ctrl-C ends it. Where the output is no terminal, one view is printed."

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
            with Live(look(), console=console, screen=True, auto_refresh=False) as live:
                while True:
                    time.sleep(EVERY_S)
                    live.update(look(), refresh=True)

    return run
