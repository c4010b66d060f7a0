"""``Sidecar``: a service of your own, beside your program.

It is a subprocess with the command line of ``slipstream serve``: nothing of your program is imported
again, no signal handler is installed, and it ends when your program ends, however that happens.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any

from .options.route import RouteOptions
from .options.serve import ServeOptions
from .protocol.actors import HELPERS
from .protocol.client.blocking import Client
from .protocol.client.request import check_seconds
from .protocol.errors import InvalidRequest, ServiceUnavailable, SlipstreamError, from_wire
from .runtime.options.command_line import to_arguments
from .runtime.options.sources import resolve
from .runtime.options.table import PREFIX
from .status import ask

if TYPE_CHECKING:
    from .protocol.client.asynchronous import AsyncClient

LOG_LINES = 400
"""Newest lines of the service's log that are kept, to say why it ended: a traceback with what came before it."""

OTHERS = {
    f"{PREFIX}{name}"
    for name in ("ENDPOINT", "HTTP", "API_KEY", "ALLOWED_ORIGINS", "READY_FD", "PRINT_CONFIG")
}
"""Variables that speak of another service of this environment: two cannot have the same endpoint."""

COMMAND_ONLY = {"ready_fd": None, "print_config": False, "exit_with_parent": True}
"""Options that only a command has a choice in, and what they come to for a service that a program owns."""

SYSTEMD = {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}
"""Variables that are for your program, if systemd started it, and not for its service."""

MAX_POLL_S = 3600.0
"""Longest single wait in the kernel; ``start_timeout_s`` may be any number, infinity too."""

STOP_MARGIN_S = 5.0
"""Beyond ``shutdown_timeout``: for the actors to end after the last request has."""


class Sidecar:
    """Starts a service and owns it. ``options`` are those of ``slipstream serve``, with underscores.

    The constructor returns when the service is ready. A service that cannot start raises
    ``SlipstreamError`` with the block that says why; one that is not ready after ``start_timeout_s`` is
    ended. Use it as a context manager, or call ``stop``.
    """

    def __init__(
        self, model: str | os.PathLike[str] | None = None, *, start_timeout_s: float = 600.0, **options: Any
    ) -> None:
        if model is not None:
            options["model"] = model
        self._start("serve", ServeOptions, options, start_timeout_s)

    def _start(
        self,
        command: str,
        table: type[ServeOptions] | type[RouteOptions],
        options: dict[str, Any],
        timeout_s: float,
    ) -> None:
        check_seconds("start_timeout_s", timeout_s)
        for name, value in COMMAND_ONLY.items():
            if options.pop(name, value) is not value:
                raise InvalidRequest(
                    f"{name} is for the command line: leave it out, as here it is {value}", param=name
                )
        environment = {name: value for name, value in os.environ.items() if name not in OTHERS | SYSTEMD}
        self.options = resolve(table, keywords=options, environ=environment).options
        """The options of the service, with those from the environment and a configuration file."""
        if self.options.log_format == "auto":
            options["log_format"] = "text"  # it is read by people: in ``log``, and in errors
        read_end, write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", __package__ or "slipstream", command),
                    *(f"--ready-fd={write_end}", "--exit-with-parent"),
                    *to_arguments(table, options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                pass_fds=(write_end,),
                process_group=0,  # so that Ctrl-C reaches your program alone
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._log = Log(self._process.stderr)
        self._owner = os.getpid()
        self._end = weakref.finalize(self, end, self._process, self.options.shutdown_timeout, self._owner)
        try:
            with open(read_end, "rb", buffering=0) as ready:
                ready_line = self._wait_ready(ready, timeout_s)
        except BaseException:
            self._process.kill()  # the actors end with their supervisor
            self._process.wait()
            raise
        self.endpoint: str = ready_line["endpoint"]
        """Where clients connect."""
        self.ready: dict[str, Any] = ready_line
        """What the service said when it was ready."""

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(self, *exception: object) -> None:
        if os.getpid() == self._owner:  # a forked child that leaves the block has nothing to stop
            self.stop()

    def client(self, **options: Any) -> Client:
        """A new blocking client of this service."""
        self.check_running()
        return Client(self.endpoint, **options)

    def async_client(self, **options: Any) -> AsyncClient:
        """A new client of this service for asyncio."""
        from .protocol.client.asynchronous import AsyncClient

        self.check_running()
        return AsyncClient(self.endpoint, **options)

    @property
    def pid(self) -> int:
        """The process id of the service's supervisor."""
        return self._process.pid

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each actor as it is now; spare and keeper are none."""
        return {name: actor["pid"] for name, actor in self.actors.items() if actor["role"] not in HELPERS}

    @property
    def actors(self) -> dict[str, dict[str, Any]]:
        """The supervisor's report on each actor, on a spare and on a keeper: role, pid, state, epoch and restarts."""
        return self._ask()

    def restart(self, actor: str) -> None:
        """End an actor and start it again; returns at once. Requests go on, as after a death.

        ``InvalidRequest`` if there is no such actor, or it is not ready.
        """
        self._ask(restart=actor)

    def _ask(self, restart: str | None = None) -> dict[str, dict[str, Any]]:
        self.check_running()
        try:
            return ask(self.ready["control"], restart)["actors"]
        except ServiceUnavailable as error:
            raise ServiceUnavailable(f"{error} (pid {self.pid})\n{self.log}") from None

    @property
    def log(self) -> str:
        """The newest lines of the service's log."""
        return self._log.text()

    def stop(self) -> int:
        """Let running requests finish, for at most ``shutdown_timeout``, then end the service.

        Returns its exit code, 0 after a drain. Stopping twice is harmless; in a forked child it is a
        ``RuntimeError``, since the service is the parent's.
        """
        if os.getpid() != self._owner:
            raise RuntimeError(
                f"this Sidecar belongs to process {self._owner}, of which this one ({os.getpid()}) is a fork:"
                " stop it there; a client of it can be made here"
            )
        self._end()
        return self._process.wait()

    def check_running(self) -> None:
        """``ServiceUnavailable`` at once if the service has ended; a forked child cannot know."""
        if os.getpid() == self._owner and self._process.poll() is not None:
            raise ServiceUnavailable(
                f"the service has ended with exit code {self._process.returncode}; start a new one. Its log:"
                f"\n{self.log}"
            )

    def _wait_ready(self, ready: IO[bytes], timeout_s: float) -> dict[str, Any]:
        """The line that says where the service is; it comes, or the pipe ends with the process."""
        deadline = time.monotonic() + timeout_s
        poller = select.poll()
        poller.register(ready, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            rest = deadline - time.monotonic()
            if rest <= 0:
                raise ServiceUnavailable(
                    f"the service was not ready within start_timeout_s={timeout_s:g}; its log:\n{self.log}"
                )
            if not poller.poll(min(rest, MAX_POLL_S) * 1000):
                continue
            part = ready.read(65536)
            if not part:
                code = self._process.wait()
                self._log.finish()
                raise SlipstreamError(
                    f"the service ended with exit code {code} before it was ready\n{self.log}"
                )
            line += part
        report = json.loads(line)
        if "error" in report:
            raise from_wire(report["error"], report["message"])
        return report


class RouterSidecar(Sidecar):
    """Starts a router before services that run already, and owns it. ``options`` are those of ``slipstream route``."""

    def __init__(
        self, services: Iterable[str] = (), *, start_timeout_s: float = 60.0, **options: Any
    ) -> None:
        """``services``: their endpoints, unless the option ``services_file`` says where they stand."""
        if services:
            options["services"] = ",".join(services)
        self._start("route", RouteOptions, options, start_timeout_s)


class Log:
    """Reads a process's standard error to its end and keeps the newest lines."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self.thread = threading.Thread(target=self.read, args=(stream,), name="slipstream-log", daemon=True)
        self.thread.start()

    def read(self, stream: IO[bytes] | None) -> None:
        with stream or open(os.devnull, "rb") as lines:
            for line in lines:
                self.lines.append(line.decode(errors="replace").rstrip("\n"))

    def finish(self) -> None:
        """Wait for the last line; what still holds the pipe open has a second to end."""
        self.thread.join(1.0)

    def text(self) -> str:
        return "\n".join(self.lines.copy())


def end(process: subprocess.Popen[bytes], timeout_s: float, owner: int) -> None:
    """SIGTERM, then wait for the drain; SIGKILL if it takes too long."""
    if os.getpid() != owner:
        return  # a fork of the program: the service is not its own
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout_s + STOP_MARGIN_S)
    except subprocess.TimeoutExpired:
        process.kill()  # the actors end with their supervisor
        process.wait()
