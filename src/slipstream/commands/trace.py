"""``slipstream trace``: write what a service just did as one timeline for Perfetto."""

from __future__ import annotations

import argparse

from ..exit_codes import DONE, FAILED
from .common import Exit, Run
from .connecting import add_endpoint, reach_running


def declare(parser: argparse.ArgumentParser) -> Run:
    add_endpoint(parser)
    parser.add_argument(
        "--seconds", type=float, required=True, metavar="S", help="the last S seconds before now"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="open it at https://ui.perfetto.dev")

    def run(found: argparse.Namespace) -> int:
        from ..protocol.client.perfetto import write

        with reach_running(found) as client:
            timeline = client.trace(found.seconds)
        try:
            with open(found.output, "w", encoding="utf-8") as file:
                events = write(timeline, file)
        except OSError as error:
            raise Exit(FAILED, f"cannot write {found.output}: {error.strerror}") from None
        spans = sum(map(len, timeline.tracks.values()))
        print(
            f"{found.output}: {spans} spans in {len(timeline.tracks)} tracks, {events} events;"
            " open it at https://ui.perfetto.dev"
        )
        for track, ended in sorted(timeline.reach.items()):
            seconds = (timeline.until - ended) * 1e-9
            print(f"{track} goes back only {seconds:.2f} s: it has done more since than a ring holds")
        return DONE

    return run
