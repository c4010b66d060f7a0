"""Children that a service and a router specify alike: an actor, and the OpenAI frontend with its options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from .. import __version__, actors
from ..actors.options import HttpOptions
from ..options.route import RouteOptions
from ..options.serve import ServeOptions
from ..protocol.client_key import ClientKey
from ..protocol.errors import InvalidRequest
from ..protocol.limits import Limits
from ..protocol.paths import absolute_path
from ..runtime.key_folder import KeyFolder, new_pair
from ..runtime.supervision.children import ChildSpec


def child(
    name: str, module: str, options: Any, *, waits: bool = False, frontend_of: str | None = None
) -> ChildSpec:
    """An actor that ``build`` of a module makes, with its options."""
    factory = f"{actors.__name__}.{module}:build"
    return ChildSpec(name, factory, msgspec.to_builtins(options), waits=waits, frontend_of=frontend_of)


def chat_template_of(options: ServeOptions | RouteOptions) -> str | None:
    return None if options.chat_template is None else absolute_path(options.chat_template)


MAX_DEFAULTS_BYTES = 64 * 1024
"""Most bytes of the file of ``--model-defaults``, and of what it says in the message that gives it to the frontend."""


def model_defaults(file: str | None) -> dict[str, dict[str, Any]]:
    """The content of ``--model-defaults``, whose fields the frontend checks."""
    if file is None:
        return {}
    try:
        if Path(file).exists() and not Path(file).is_file():  # to read a pipe is to wait for ever
            raise ValueError("it is no file")
        with Path(file).open("rb") as source:
            text = source.read(MAX_DEFAULTS_BYTES + 1)
        if len(text) > MAX_DEFAULTS_BYTES:
            raise ValueError(f"it has more than {MAX_DEFAULTS_BYTES} bytes")
        defaults = msgspec.json.decode(text, type=dict[str, dict[str, Any]])
        if len(msgspec.msgpack.encode(defaults)) > MAX_DEFAULTS_BYTES:
            raise ValueError(f"what it says takes more than {MAX_DEFAULTS_BYTES} bytes")
        return defaults
    except (OSError, ValueError, OverflowError, RecursionError) as error:  # a DecodeError is a ValueError
        raise InvalidRequest(
            f'{file} cannot be read: {error}; it is a JSON file such as {{"NAME": {{"temperature": 0.6}}}}'
        ) from None


def http_options(
    options: ServeOptions | RouteOptions, address: str, folder: str, names: Sequence[str], limits: Limits
) -> HttpOptions:
    """The frontend is a client too: where clients need a key, it has one that is made for this start."""
    key = None
    if options.curve_keys is not None:
        public, secret = new_pair()
        server, _ = KeyFolder(Path(options.curve_keys)).server()
        key = ClientKey(server=server, public=public, secret=secret)
    origins = [origin.strip() for origin in (options.allowed_origins or "").split(",")]
    return HttpOptions(
        endpoint=address,
        curve=key,
        model=folder,
        model_name=names[0],
        other_names=tuple(names[1:]),
        adapters=isinstance(options, RouteOptions) or options.adapter_slots > 0,
        routed=isinstance(options, RouteOptions),
        limits=limits,
        chat_template=chat_template_of(options),
        sanitize_control_tokens=options.sanitize_control_tokens,
        version=__version__,
        api_key=options.api_key,
        metrics_prefix=options.metrics_prefix,
        defaults=model_defaults(options.model_defaults),
        allowed_origins=tuple(origin for origin in origins if origin),
    )
