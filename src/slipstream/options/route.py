"""The options of ``slipstream route``. Those that it shares with ``slipstream serve`` are declared there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..protocol.endpoints import check_endpoint
from ..protocol.errors import InvalidRequest
from ..runtime.options.table import PREFIX, option, table
from .access import check_access
from .serve import EVERYDAY, ServeOptions


def shared(name: str) -> Any:
    """An option of ``ServeOptions``, here too."""
    field = ServeOptions.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclass(frozen=True, kw_only=True)
class RouteOptions:
    """All options of a router."""

    services: str = option(
        "",
        "where the services are, each as it was printed when it was ready",
        group=EVERYDAY,
        metavar="ENDPOINT",
        positional=True,
        many=True,
    )
    services_file: str | None = option(
        None,
        "a file that names the services, one on each line, in place of naming them here; read again when it changes",
        group=EVERYDAY,
        metavar="FILE",
    )
    endpoint: str | None = shared("endpoint")
    http: str | None = shared("http")
    api_key: str | None = shared("api_key")
    model: str | None = option(
        None,
        "with --http: the folder or hub name of the tokenizer and the chat template (default: the services' model)",
        group=EVERYDAY,
        metavar="NAME",
    )
    chat_template: str | None = shared("chat_template")
    sanitize_control_tokens: bool = shared("sanitize_control_tokens")
    model_defaults: str | None = shared("model_defaults")
    client_key: str | None = option(
        None,
        "the key file with which the services let the router in, where they ask for one",
        group=EVERYDAY,
        metavar="FILE",
    )
    seed: int | None = shared("seed")
    config: str | None = shared("config")
    print_config: bool = shared("print_config")
    shutdown_timeout: float = shared("shutdown_timeout")
    ready_fd: int | None = shared("ready_fd")
    exit_with_parent: bool = shared("exit_with_parent")
    log_format: str = shared("log_format")
    allowed_origins: str | None = shared("allowed_origins")
    metrics_prefix: str = shared("metrics_prefix")
    curve_keys: str | None = shared("curve_keys")
    insecure: bool = shared("insecure")

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoints of the services."""
        named = (endpoint.strip() for endpoint in self.services.split(","))
        return tuple(check_endpoint(endpoint, insecure=True) for endpoint in named if endpoint)

    def check(self, spell: Callable[[str], str]) -> None:
        """Refuse what does not fit together."""
        if self.services_file is not None and self.endpoints:
            raise InvalidRequest(
                f"{spell('services_file')} names the services already; name them in one place"
            )
        if not self.endpoints and self.services_file is None and not self.print_config:
            raise InvalidRequest("no service is named: slipstream route ENDPOINT... --endpoint URL")
        for endpoint in self.endpoints:
            if self.endpoints.count(endpoint) > 1:
                raise InvalidRequest(f"the service {endpoint} is named twice; name it once")
        if self.endpoint is not None and check_endpoint(self.endpoint, insecure=True) in self.endpoints:
            raise InvalidRequest(f"{spell('endpoint')} is that of a service; the router needs one of its own")
        if self.http is None:
            unused = [name for name in ("model", "chat_template") if getattr(self, name) is not None]
            if self.sanitize_control_tokens:
                unused.append("sanitize_control_tokens")
            if unused:
                flag = unused[0].replace("_", "-")
                raise InvalidRequest(
                    f"{flag} has no effect without the OpenAI frontend; add --http HOST:PORT"
                )
        check_access(self, spell)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of the environment that are options of ``route``: ``serve`` may run in the same one."""
    serve_alone = {
        f"{PREFIX}{name.upper()}" for name in table(ServeOptions).keys() - table(RouteOptions).keys()
    }
    return {name: value for name, value in environ.items() if name not in serve_alone}
