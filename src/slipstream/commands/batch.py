"""``slipstream batch``: answer a file of requests into another; a run that was killed is taken up where it was."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..exit_codes import DONE, FAILED, USAGE
from .common import Exit, Run
from .extras import need

if TYPE_CHECKING:
    from ..batch import Asker, Request


def declare(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument(
        "input", type=Path, metavar="INPUT", help="requests in OpenAI's batch format, one a line"
    )
    parser.add_argument(
        "output",
        type=Path,
        metavar="OUTPUT",
        help="where answers go; those that it has already are not asked for again",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--base-url", metavar="URL", help="of a running service; left out: a service just for this"
    )
    place.add_argument(
        "--model", metavar="M", help="for a service just for this; left out: the bundled model"
    )
    parser.add_argument(
        "--concurrency", type=int, default=128, metavar="N", help="requests under way at once (default 128)"
    )

    def run(found: argparse.Namespace) -> int:
        from ..batch import BatchError

        if found.concurrency < 1:
            raise Exit(USAGE, f"--concurrency={found.concurrency}: give at least 1")
        try:
            with ExitStack() as meanwhile:
                return answer(found, meanwhile)
        except BatchError as error:
            raise Exit(FAILED, str(error)) from None

    return run


def answer(found: argparse.Namespace, meanwhile: ExitStack) -> int:
    from ..batch import Asker, BatchError, alone, read_requests, take_up

    try:
        requests = read_requests(found.input)
        meanwhile.enter_context(alone(found.output))
        left = take_up(found.output, requests)
        asker = (
            None if found.base_url is None else Asker(found.base_url, os.environ.get("SLIPSTREAM_API_KEY"))
        )
    except BatchError as error:
        raise Exit(USAGE, str(error)) from None
    try:
        refused = answer_into(found, requests, left, asker)
    except OSError as error:
        why = error.strerror or error
        raise BatchError(
            f"{found.output} cannot be written: {why}; once it can be, run the same command again to go on"
        ) from None
    before = len(requests) - len(left)
    print(f"{len(left)} answers in {found.output}, {refused} of them errors; {before} were there before")
    return DONE


def answer_into(
    found: argparse.Namespace, requests: list[Request], left: list[Request], asker: Asker | None
) -> int:
    """Write what is missing; returns how many were refused. OSError where the output cannot be written."""
    from ..batch import Asker, ProgressBar, run_batch, sync
    from ..protocol.errors import SlipstreamError

    refused = 0
    with ExitStack() as stack:
        if left and asker is None:
            need("batch", "engine", "or give --base-url")
            need("batch", "http", "or give --base-url")
            from ..sidecar import Sidecar

            try:
                service = stack.enter_context(Sidecar(found.model, http="127.0.0.1:0"))
            except SlipstreamError as error:
                raise Exit(FAILED, str(error)) from None
            asker = Asker(service.ready["http"], None)
        output = stack.enter_context(found.output.open("ab"))
        if asker is not None:
            stack.callback(asker.close)
            bar = ProgressBar(len(requests) - len(left), len(requests), sys.stderr.write)
            shows = sys.stderr.isatty()
            refused = run_batch(
                left, output, asker, found.concurrency, bar.show if shows else lambda answered: None
            )
            if shows:
                sys.stderr.write("\n")
        sync(output)
    return refused
