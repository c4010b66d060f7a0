"""Starts and ends the process of an actor.

``python -m slipstream.runtime.process.child MODULE:FACTORY FD PARENT`` is what the supervisor runs: ``FACTORY``
builds the actor, ``FD`` is the control channel, and ``PARENT`` the process with which this one ends.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

import msgspec

from ...protocol.codec import prepare
from ..actor import Actor
from ..supervision import control
from .host import Host
from .loops import run_blocking, run_events
from .priority import lower_priority, raise_priority
from .set_up import set_up

if TYPE_CHECKING:
    from .frontend import Frontend, FrontendHost

T = TypeVar("T")

GARBAGE = 10_000
"""New objects after which Python looks for reference cycles. Messages have none, and a step makes a thousand
objects."""


class StartContext(Protocol):
    """The context that a factory gets to build its actor."""

    epoch: int
    """The incarnation that is being built."""
    restarted: bool
    """Whether the service has had an earlier incarnation of the actor."""
    crashed: bool
    """Whether the incarnation before this one ended by its own fault."""
    prepared: Any
    """What ``prepare`` returned in the spare, if this incarnation is forked from one; otherwise None."""

    def options_as(self, kind: type[T]) -> T:
        """The options of the actor as its own frozen dataclass; ``ValidationError`` if they do not fit."""
        ...

    def phase(self, name: str) -> None:
        """Begin a phase of the start. A failure names the phase, and the banner shows its time."""
        ...


class ProcessStart:
    """The `StartContext` of this process, which also times the phases of its start."""

    def __init__(
        self,
        options: dict[str, Any],
        epoch: int = 1,
        *,
        restarted: bool = False,
        crashed: bool = False,
        prepared: Any = None,
    ) -> None:
        self.options = options
        self.epoch = epoch
        self.restarted = restarted
        self.crashed = crashed
        self.prepared = prepared
        self.current = "import"
        self.since = time.monotonic()
        self.phases: dict[str, float] = {}

    def options_as(self, kind: type[T]) -> T:
        return msgspec.convert(self.options, kind)

    def phase(self, name: str) -> None:
        now = time.monotonic()
        self.phases[self.current] = self.phases.get(self.current, 0.0) + now - self.since
        self.current, self.since = name, now

    def ended(self) -> dict[str, float]:
        """The seconds of each phase, when the last one is over."""
        self.phase("ready")
        return {name: round(seconds, 3) for name, seconds in self.phases.items()}


def give_memory_back() -> None:
    """Give memory that was needed only for the start back to the system; for a large vocabulary, it is as much again as
    what is kept. From now on allocations above 128 KB, such as a long prompt or a trace, are mapped, so that they go
    back when they are freed.

    The C library does so too, but only until the first such allocation is freed: then it raises the threshold, and the
    memory becomes fragmented.
    """
    library = ctypes.CDLL(None)
    m_mmap_threshold = -3
    if hasattr(library, "malloc_trim"):  # of the GNU C library; others give memory back by themselves
        library.malloc_trim(0)
        library.mallopt(m_mmap_threshold, 128 * 1024)


def main(factory: str, fd: int, parent: int) -> int:
    """Build the actor that ``factory`` names and run it until the supervisor ends it."""
    set_up(parent)
    with socket.socket(fileno=fd) as channel:
        return live(factory, channel)


def live(factory: str, channel: socket.socket, *, in_hand: int | None = None, prepared: Any = None) -> int:
    """Build the actor and run it, as the control channel says; returns the exit code of the process.

    ``in_hand``: the file descriptor of ``InHand``, where that is not the one which ``Begin`` says. ``prepared``: as of
    `StartContext`.
    """
    begin = control.receive(channel)
    if not isinstance(begin, control.Begin):
        return 1
    if in_hand is not None:
        begin.in_hand = in_hand
    context = ProcessStart(
        begin.options, begin.epoch, restarted=begin.restarted, crashed=begin.crashed, prepared=prepared
    )
    try:
        host = start(factory, begin, context, channel)
    except Exception as error:
        control.send(channel, failure(context.current, error))
        return 1
    try:
        run(host)
    except Exception as error:
        control.send(channel, failure("serving", error))
        return 1
    host.close()
    return 0


def start(
    factory: str, begin: control.Begin, context: ProcessStart, channel: socket.socket
) -> Host | FrontendHost:
    """Build the actor and its sockets, and report that it is ready."""
    make: Callable[[StartContext], Actor | Frontend] = named(factory)
    made = make(context)
    context.phase("sockets")
    prepare(control.AnyControl)
    facts = dict(made.facts)
    if isinstance(made, Actor):
        if made.blocking:
            raise_priority()  # before the sockets start threads
        host = Host(made, begin, channel)
        if made.endpoint is not None:
            facts["endpoint"] = host.open_public(made.endpoint)
    else:
        from .frontend import FrontendHost  # an actor that blocks has no use for asyncio

        host = FrontendHost(made, channel)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE)
    channel.setblocking(False)
    control.send(channel, control.Ready(facts, context.ended()))
    return host


def named(function: str) -> Any:
    """The function that ``module:function`` names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def run(host: Host | FrontendHost) -> None:
    """Wait until the supervisor says stop, or is gone."""
    if isinstance(host, Host) and host.actor.blocking:
        gc.disable()  # with a long queue one look for cycles takes many steps: the host looks when idle
        run_blocking(host)
        return
    lower_priority()
    give_memory_back()
    run_events(host) if isinstance(host, Host) else host.run()


def failure(phase: str, error: Exception) -> control.Failed:
    return control.Failed(
        phase=phase,
        kind=type(error).__name__,
        message=str(error)[:8000],
        hint=getattr(error, "hint", ""),
        traceback="".join(traceback.format_exception(error))[-16000:],
        of_another=getattr(error, "of_another", False),
        for_good=getattr(error, "for_good", False),
    )


def end(code: int) -> NoReturn:
    """End the process at once.

    Large libraries take their time to clear up what goes with the process, and complain into the log.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
