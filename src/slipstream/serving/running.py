"""Run the children of a service or of a router under a supervisor, from their specifications to the exit code.

Whoever waits for a start reads one line on the descriptor of ``--ready-fd``: the ready line, or why it will not come.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..exit_codes import COULD_NOT_START, DONE, FAILED
from ..options.route import RouteOptions
from ..options.serve import ServeOptions
from ..protocol.errors import BY_CODE, SlipstreamError
from ..runtime.log import configure, log_failure, logger, wants_json
from ..runtime.machine.file_limit import check_file_limit
from ..runtime.machine.run_directory import run_directory
from ..runtime.machine.socket_file import remove_left
from ..runtime.supervision.children import ChildFailed, ChildSpec
from ..runtime.supervision.control import IDLE_SIGNALS
from ..runtime.supervision.drain import drain
from ..runtime.supervision.notify import Notify
from ..runtime.supervision.stop_requests import SAME_S
from ..runtime.supervision.supervisor import Supervisor

USERS_ERRORS = {kind.__name__: kind for kind in BY_CODE.values()}
"""The errors that a user can mend, by name."""

ROOM_S = 5.0
"""How long the ready line waits for room in a pipe that is full."""

Announce = Callable[[Supervisor, float], dict[str, Any]]
"""Writes the banner, given what the start took in seconds; returns the ready line."""


def specify_and_run(
    options: ServeOptions | RouteOptions, specify: Callable[[Path], list[ChildSpec]], announce: Announce
) -> int:
    """Run the children that ``specify`` names for a run directory; returns the exit code."""
    configure(as_json=wants_json(options.log_format))
    parent = os.getppid()
    with contextlib.ExitStack() as held:
        try:
            directory = held.enter_context(run_directory())
            check_file_limit()
            specs = specify(directory)
        except SlipstreamError as error:
            log_failure("slipstream could not start", f"  cause   {type(error).__name__}: {error}")
            report_failed(options.ready_fd, error.code, str(error))
            return COULD_NOT_START
        try:
            return run(specs, options, directory, parent, announce)
        finally:
            remove_left(options.endpoint or "")


def run(
    specs: list[ChildSpec],
    options: ServeOptions | RouteOptions,
    directory: Path,
    parent: int,
    announce: Announce,
) -> int:
    """Run these children until told to stop; returns the exit code."""
    notify = Notify(os.environ)
    supervisor = Supervisor(specs, directory, notify, collect_output=wants_json(options.log_format))
    hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)  # as nohup asks
    supervisor.stop_requests.handle(signal.SIGTERM, signal.SIGINT, *hang_up, signal.SIGCHLD, *IDLE_SIGNALS)
    if options.exit_with_parent:
        supervisor.stop_requests.end_with(parent)
    begun = time.monotonic()
    try:
        if not supervisor.start():
            supervisor.stop()
            return DONE
        ready = announce(supervisor, time.monotonic() - begun)
        # First what can fail: a service that has said on its descriptor that it is ready stays.
        notify.send("READY=1", f"STATUS=serving {ready['model']} at {ready['endpoint']}")
        if options.ready_fd is not None:
            report_ready(options.ready_fd, ready)
    except (SlipstreamError, OSError) as error:
        # A signal to all processes ends those that are not yet set up to leave it to the supervisor.
        if supervisor.stopping:
            supervisor.stop()
            return DONE
        block = str(error) if isinstance(error, ChildFailed) else f"  cause   {error}"
        log_failure("slipstream could not start", block)
        log_traceback(error)
        supervisor.stop()
        kind = USERS_ERRORS.get(getattr(error, "kind", ""), SlipstreamError)
        report_failed(options.ready_fd, kind.code, block)
        return COULD_NOT_START
    return serve_until_stopped(supervisor, notify, options.shutdown_timeout)


def serve_until_stopped(supervisor: Supervisor, notify: Notify, shutdown_timeout_s: float) -> int:
    """Watch the children until told to stop, drain them and end them; returns the exit code."""
    last_words = "the service has stopped"
    try:
        supervisor.run()
        with contextlib.suppress(SlipstreamError):  # a drain goes on even if nobody can be notified
            notify.send("STOPPING=1")
        if not supervisor.stop_requests.parent_gone and not finish(supervisor, shutdown_timeout_s):
            last_words = "the service was stopped before this request was finished"
            twice = supervisor.stop_requests.at_once
            cause = "told twice to stop" if twice else supervisor.cut_off or "the drain took too long"
            log_failure(
                "slipstream stopped before everything was finished",
                f"  cause   {cause}; what was left is answered with an error",
            )
            return FAILED
        return DONE
    except SlipstreamError as error:
        last_words = f"the service failed: {getattr(error, 'cause', error)}"
        log_failure("slipstream failed", str(error))
        log_traceback(error)
        return FAILED
    finally:
        supervisor.stop(last_words)


def finish(supervisor: Supervisor, shutdown_timeout_s: float) -> bool:
    """Have what is under way finished; False if that took too long, or was told to end at once."""
    answering = [name for name in ("http", "gateway", "router") if name in supervisor.children]
    soon = min(SAME_S, shutdown_timeout_s)
    if drain(supervisor, answering, soon):
        logger.info("stopping; nothing is under way")
        return not supervisor.cut_off
    # Said when it has become true: a signal that came sooner would have been taken for the first one.
    logger.info(f"stopping; waiting up to {shutdown_timeout_s:g} s for what is under way (again: at once)")
    return drain(supervisor, answering, shutdown_timeout_s - soon) and not supervisor.cut_off


def log_traceback(error: Exception) -> None:
    """The child's traceback, for an error that is ours: not the user's, and not the machine's."""
    failure = getattr(error, "failure", None)
    if failure is not None and failure.kind not in USERS_ERRORS and not failure.for_good:
        logger.error("this is where it happened:", extra={"cause": failure.traceback})


def report_failed(fd: int | None, code: str, message: str) -> None:
    """Report on the descriptor of the ready line that it will not come, and why."""
    if fd is not None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            write_line(fd, {"error": code, "message": message})


def report_ready(fd: int, ready: dict[str, Any]) -> None:
    """Write the ready line; ``SlipstreamError`` if the descriptor cannot be written."""
    try:
        write_line(fd, ready)
    except OSError as error:
        raise SlipstreamError(f"--ready-fd {fd} cannot be written: {error.strerror}") from None
    os.close(fd)


def write_line(fd: int, said: dict[str, Any]) -> None:
    """Write a line; ``OSError`` if it cannot be written, or there is no room for it in time."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(ROOM_S * 1000):
        raise TimeoutError(errno.ETIMEDOUT, "nobody reads it")
    os.write(fd, json.dumps(said).encode() + b"\n")
