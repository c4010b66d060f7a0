"""The two loops of a host: how it waits for its sockets, its actor's device and the clock.

Scheduler and executor wait in a blocking poller, which reacts soonest. The others wait in uvloop: there the raw sockets
are drained until they are empty, and looked at again after each send, since ZeroMQ's file descriptors are
edge-triggered.
"""

from __future__ import annotations

import gc

import zmq

from .host import Host

TURNS_PER_COLLECTION = 10_000
"""Turns after which a blocking host collects garbage, the next time that there is nothing to do."""


def run_blocking(host: Host) -> None:
    """Wait in a poller, without any timer while nothing is due."""
    poller = zmq.Poller()
    poller.register(host.mailboxes.own, zmq.POLLIN)
    poller.register(host.channel.fileno(), zmq.POLLIN)
    device = host.actor.completions_fd
    if device is not None:
        poller.register(device, zmq.POLLIN)
    more = False
    turns = 0
    while not host.stopped:
        wait = 0.0 if host.dump_on() or more else host.do_due()
        turns += 1
        if wait is None and turns > TURNS_PER_COLLECTION and host.actor.idle:
            gc.collect()
            turns = 0
        ready = dict(poller.poll(None if wait is None else int(wait * 1000 + 0.999)))
        if device is not None and device in ready:
            host.completed(device)
        more = host.receive_from_peers() if host.mailboxes.own in ready else False
        if host.channel.fileno() in ready:
            host.receive_from_supervisor()


def run_events(host: Host) -> None:
    """Wait in uvloop for the sockets' file descriptors."""
    import asyncio  # neither is imported where a host blocks

    import uvloop

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        timer: asyncio.TimerHandle | None = None

        receivers = {host.mailboxes.own: host.receive_from_peers}
        if host.public is not None:
            receivers[host.public.socket] = host.receive_from_clients
        readable = set(receivers)
        """Sockets on which something may have arrived. A turn tries no others, since finding an empty one takes
        longest."""

        def turn() -> None:
            nonlocal timer
            tried = readable.copy()
            readable.clear()
            try:
                host.receive_from_supervisor()
                for s, receive in receivers.items():
                    if s in tried and receive():
                        readable.add(s)
                more = host.receive_from_services() | host.dump_on()
                wait = host.do_due()
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
                return
            if host.stopped:
                if not done.done():
                    done.set_result(None)
                return
            # Sending may have consumed the edge that signalled a message: look again.
            for s in receivers:
                if s not in readable and int(s.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                    readable.add(s)
            if readable or more or (host.service_sockets is not None and host.service_sockets.look_again()):
                loop.call_soon(turn)
            elif wait is not None:
                if timer is not None:
                    timer.cancel()
                timer = loop.call_later(wait, turn)

        def arrived(socket: zmq.Socket[bytes]) -> None:
            readable.add(socket)
            turn()

        for s in receivers:
            loop.add_reader(s.fileno(), arrived, s)
        if host.service_sockets is not None:
            host.service_sockets.watch(
                lambda fd, arrived: loop.add_reader(fd, arrived), loop.remove_reader, turn
            )
        loop.add_reader(host.channel.fileno(), turn)
        loop.call_soon(turn)
        await done

    uvloop.run(serve())
