"""Replicas on a Ray cluster: Ray Serve places, starts, checks, rolls and ends them, and takes HTTP.

``serve.run(application("MODEL", replicas=4, ingresses=2))`` makes two deployments. A replica of the first owns one
service (``Sidecar``), at a TCP port with keys. A replica of the second, an *ingress*, is OpenAI's frontend in Serve's
own process, with a router of its own beside it. Tokens go over ZeroMQ from gateways to routers and not through Serve:
so streams outlive a replica, and the router sees prompts, which Serve's own routers do not.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .options.serve import ServeOptions
from .protocol.client.asynchronous import AsyncClient
from .protocol.errors import ServiceUnavailable
from .ray_scaling import CACHE, OPEN, Progress, scaling
from .runtime.key_folder import KeyFolder
from .runtime.options.sources import resolve
from .runtime.options.table import table
from .runtime.options.values import convert
from .sidecar import STOP_MARGIN_S, RouterSidecar, Sidecar

if TYPE_CHECKING:  # it is not installed where types are checked, and this file has its name
    ray: Any
    serve: Any
else:
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ImportError(
            f"slipstream.ray needs Ray Serve: pip install 'slipstream[ray]' ({error})"
        ) from None

CHECK_EVERY_S = 1.0
"""How often Serve checks a service, which thereby shows that it is there."""

GONE_AFTER_S = 5.0
"""A service that has not shown it for this long is left out. Its streams do not wait for that: the router sees that the
connection breaks."""

LOOK_EVERY_S = 0.5
"""How often an ingress looks which services there are."""

FIRST_SERVICE_S = 600.0
"""How long an ingress waits for the first of them: a large model takes its time."""

ANSWER_WITHIN_S = 5.0
"""How long a service may take to say what it counts: its gateway is back within this time if it was restarted."""

HANG_S = 60.0
"""Where ``hang_timeout`` is not given: how long an executor may hang until its supervisor ends it."""

ROUTER_KEY = "router"


def application(
    model: str | None = None,
    *,
    replicas: int = 1,
    ingresses: int = 1,
    tensor_parallel_size: int = 1,
    options: dict[str, Any] | None = None,
    autoscaling: dict[str, Any] | None = None,
    api_key: str | None = None,
    fleet: str = "slipstream",
) -> Any:
    """A Serve application: ``replicas`` services of ``model`` behind ``ingresses`` that speak OpenAI's API.

    Each application of a cluster that is not a new version of another needs a ``fleet`` of its own: the name by which
    its ingresses find its services.

    ``options`` are those of ``slipstream serve``, for each service; ``InvalidRequest`` if they are none. A replica asks
    Ray for as many GPUs as it has ranks, unless its ``device`` is another.

    ``autoscaling``: fields of Serve's ``AutoscalingConfig``, as ``{"max_replicas": 8}``; there are ``replicas``
    services at least, and more as their open requests and caches ask for (``services_needed``). None: ``replicas``,
    always.
    """
    given = dict(options or {}) | {"model": model, "tensor_parallel_size": tensor_parallel_size}
    given = {name: value for name, value in given.items() if value is not None}
    settled = resolve(ServeOptions, keywords=given, environ={}).options
    if api_key is not None:
        convert(table(ServeOptions)["api_key"], api_key, "api_key=")
    on_gpus = settled.device == "auto" or settled.device.startswith("cuda")
    drain_s = settled.shutdown_timeout + 2 * STOP_MARGIN_S  # longer than the service's own
    many: dict[str, Any] = {"num_replicas": replicas}
    if autoscaling is not None:
        many = {"autoscaling_config": scaling(replicas, settled.max_num_seqs, autoscaling)}
    service = serve.deployment(Service).options(
        **many,
        health_check_period_s=CHECK_EVERY_S,
        health_check_timeout_s=2 * GONE_AFTER_S,
        graceful_shutdown_timeout_s=drain_s,
        ray_actor_options={"num_cpus": 0.1, "num_gpus": tensor_parallel_size if on_gpus else 0},
    )
    ingress = serve.deployment(serve.ingress(IngressApp(fleet, model, api_key))(Ingress)).options(
        num_replicas=ingresses,
        max_ongoing_requests=4096,
        graceful_shutdown_timeout_s=drain_s,
        ray_actor_options={"num_cpus": 0.1},
    )
    return ingress.bind(service.bind(fleet, given))


# --- keys and who is there ------------------------------------------------------------------------


def new_keys() -> dict[str, str]:
    """The files of a key folder: all services of a fleet have the same, and its routers one key."""
    with tempfile.TemporaryDirectory() as parent:
        folder = KeyFolder(Path(parent) / "keys")
        folder.make_server()
        folder.make_client(ROUTER_KEY)
        return {path.name: path.read_text() for path in folder.path.iterdir()}


def write_keys(keys: dict[str, str]) -> Path:
    """The folder of these files, which only this user can read."""
    folder = Path(tempfile.mkdtemp(prefix="slipstream-keys-"))  # with mode 0700
    for name, text in keys.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
    return folder


class Directory:
    """An actor of Ray: the keys of a fleet, and which of its services are there, as each says of itself."""

    def __init__(self) -> None:
        self.made = new_keys()
        self.seen: dict[str, float] = {}

    def keys(self) -> dict[str, str]:
        return self.made

    def here(self, endpoint: str) -> None:
        self.seen[endpoint] = time.monotonic()

    def leave(self, endpoint: str) -> None:
        self.seen.pop(endpoint, None)

    def endpoints(self) -> list[str]:
        now = time.monotonic()
        self.seen = {endpoint: at for endpoint, at in self.seen.items() if now - at < GONE_AFTER_S}
        return list(self.seen)


def directory_of(fleet: str) -> Any:
    """The directory of a fleet, which lives as long as the cluster; the first who asks makes it."""
    actor = ray.remote(num_cpus=0)(Directory)
    return actor.options(name=fleet, namespace="slipstream", get_if_exists=True, lifetime="detached").remote()


# --- the two deployments --------------------------------------------------------------------------


class Service:
    """A replica that owns one service, with all its processes."""

    def __init__(self, fleet: str, options: dict[str, Any]) -> None:
        self.directory = directory_of(fleet)
        keys = write_keys(ray.get(self.directory.keys.remote()))
        self.key = str(keys / f"{ROUTER_KEY}.key")
        endpoint = f"tcp://{ray.util.get_node_ip_address()}:0"
        self.sidecar = Sidecar(endpoint=endpoint, curve_keys=str(keys), **options)
        settled = self.sidecar.options
        assert isinstance(settled, ServeOptions)
        hang_s = settled.hang_timeout or HANG_S
        self.progress = Progress(3 * hang_s)
        self.client: AsyncClient | None = None
        ray.get(self.directory.here.remote(self.sidecar.endpoint))

    async def counters(self) -> dict[str, float]:
        """The counters of the service; ``ServiceUnavailable`` if its gateway does not answer in time."""
        if self.client is None:  # in the loop that all of this runs in
            self.client = AsyncClient(self.sidecar.endpoint, curve=self.key)
        try:
            return await asyncio.wait_for(self.client.stats(), ANSWER_WITHIN_S)
        except TimeoutError:
            text = f"the gateway at {self.sidecar.endpoint} does not answer for {ANSWER_WITHIN_S:g} s"
            raise ServiceUnavailable(text) from None

    async def check_health(self) -> None:
        """Raises if the service has ended, its supervisor or its gateway is silent, or it runs requests and does not
        come forward; if it does so three times in a row, Serve starts another replica."""
        await asyncio.to_thread(lambda: self.sidecar.actors)
        stuck = self.progress.take(await self.counters(), time.monotonic())
        if stuck is not None:
            raise ServiceUnavailable(f"the service at {self.sidecar.endpoint} is stuck: {stuck}")
        await self.directory.here.remote(self.sidecar.endpoint)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve: what ``services_needed`` decides by."""
        counters = await self.counters()
        return {name: counters.get(name, 0.0) for name in (OPEN, CACHE)}

    def where(self) -> dict[str, Any]:
        """For people and tests: its endpoint and processes."""
        return {
            "endpoint": self.sidecar.endpoint,
            "replica": os.getpid(),
            "supervisor": self.sidecar.pid,
            **self.sidecar.pids,
        }

    def __del__(self) -> None:
        """Serve ends the replica: nothing new comes, and what is open has the service's own time to finish."""
        if hasattr(self, "sidecar"):
            self.directory.leave.remote(self.sidecar.endpoint)
            self.sidecar.stop()


class Ingress:
    """The replica around an ``IngressApp``. It holds the handle so that Serve deploys the services too."""

    def __init__(self, services: Any) -> None:
        self.services = services


class IngressApp:
    """The ASGI application of an ingress: the frontend, before a router. It begins with the first request."""

    def __init__(self, fleet: str, model: str | None, api_key: str | None) -> None:
        self.fleet = fleet
        self.model = model
        self.api_key = api_key
        self.app: Any = None
        self.beginning: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        if self.app is None:
            if self.beginning is None or (self.beginning.done() and self.beginning.exception() is not None):
                self.beginning = asyncio.create_task(self.begin())
            await asyncio.shield(self.beginning)
        assert self.app is not None, "made by what was waited for"
        await self.app(scope, receive, send)

    async def begin(self) -> None:
        """Find the services, start the router before them, and make the frontend of what they serve."""
        from .actors.http.app import make_app
        from .actors.http.entrance import Entrance
        from .actors.http.service import Service as Frontend
        from .actors.text.prompts.prompts import load_texts
        from .options.route import RouteOptions
        from .serving.route import tokenizer_folder

        folder = write_keys(await directory_of(self.fleet).keys.remote())
        services = folder / "services"
        await self.first_services(services)
        router = await asyncio.to_thread(
            lambda: RouterSidecar(services_file=str(services), client_key=str(folder / f"{ROUTER_KEY}.key"))
        )
        self.router, self.watching = router, asyncio.create_task(self.watch(services))
        async with router.async_client() as client:
            welcome = await client.connect()
        texts = load_texts(
            Path(tokenizer_folder(RouteOptions(model=self.model), welcome)), datetime.now, None
        )
        frontend = Frontend(
            lambda: AsyncClient(router.endpoint), texts, welcome.model, __version__, welcome.limits
        )
        self.app = Entrance(frontend, make_app(frontend), self.api_key, None)

    async def first_services(self, file: Path) -> None:
        deadline = time.monotonic() + FIRST_SERVICE_S
        while not await self.look(file):
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"no service of this application was there within {FIRST_SERVICE_S:g} s"
                )
            await asyncio.sleep(LOOK_EVERY_S)

    async def watch(self, file: Path) -> None:
        """Let the router know which services there are, for as long as this replica lives."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look(file)

    async def look(self, file: Path) -> list[str]:
        """Write down which services there are."""
        found = sorted(await directory_of(self.fleet).endpoints.remote())
        text = "".join(f"{endpoint}\n" for endpoint in found)
        if found and (not file.exists() or file.read_text() != text):
            new = file.with_suffix(".new")
            new.write_text(text)
            new.replace(file)
        return found
