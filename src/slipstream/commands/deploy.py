"""``slipstream deploy``: run replicas of a model on the Ray cluster that is there."""

from __future__ import annotations

import argparse
import os
import socket

from ..exit_codes import COULD_NOT_START, DONE, USAGE
from .common import Exit, Run
from .extras import need

REACH_S = 5.0
"""How long a Ray cluster may take to accept a connection."""


def declare(parser: argparse.ArgumentParser) -> Run:
    from ..arguments import count

    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a local folder or a hub name; left out: the bundled model"
    )
    parser.add_argument("--replicas", type=count, default=1, metavar="N", help="services (default 1)")
    parser.add_argument(
        "--max-replicas",
        type=count,
        metavar="N",
        help="let Serve start as many as N when open requests or caches ask for it (default: --replicas, always)",
    )
    parser.add_argument(
        "--ingresses",
        type=count,
        default=1,
        metavar="N",
        help="OpenAI frontends, with a router each (default 1)",
    )
    parser.add_argument(
        "--tensor-parallel-size", type=count, default=1, metavar="N", help="ranks of each service (default 1)"
    )
    parser.add_argument(
        "--name", default="slipstream", metavar="NAME", help="of the application in Ray Serve"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of slipstream serve, for each service; as often as you like",
    )
    parser.epilog = (
        "Deploying again under the same name is a rolling update. serve status and serve shutdown are Ray's own"
        " commands for the rest."
    )
    return run


def run(found: argparse.Namespace) -> int:
    need("deploy", "ray")
    need("deploy", "http")
    import logging

    import ray  # pyright: ignore[reportMissingImports]
    from ray import serve  # pyright: ignore[reportMissingImports]

    from ..ray import application

    if found.max_replicas is not None and found.max_replicas < found.replicas:
        raise Exit(USAGE, f"--max-replicas {found.max_replicas} is less than --replicas {found.replicas}")
    made = application(
        found.model,
        replicas=found.replicas,
        ingresses=found.ingresses,
        tensor_parallel_size=found.tensor_parallel_size,
        options=options_in(found.option),
        autoscaling=None if found.max_replicas is None else {"max_replicas": found.max_replicas},
        fleet=found.name,
    )
    check_reachable(os.environ.get("RAY_ADDRESS", ""))
    try:
        # Without Ray the type checker takes the package's own ray.py for it.
        ray.init(address="auto", logging_level=logging.ERROR)  # pyright: ignore[reportAttributeAccessIssue]
    except ConnectionError as error:
        raise Exit(
            COULD_NOT_START,
            "no Ray cluster is there: start one with ray start --head, or name one by RAY_ADDRESS"
            f" ({str(error).splitlines()[0]})",
        ) from None
    serve.run(made, name=found.name, route_prefix="/")
    print(f"{found.name} is deployed; Ray Serve answers for it, at port 8000 unless it was started otherwise")
    return DONE


def check_reachable(address: str) -> None:
    """Exit if nobody listens at HOST:PORT, where Ray itself waits for minutes; other forms are Ray's own matter."""
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), REACH_S).close()
    except OSError as error:
        text = f"no Ray cluster is at RAY_ADDRESS={address}: {error}; start one with ray start --head"
        raise Exit(COULD_NOT_START, text) from None


def options_in(texts: list[str]) -> dict[str, str]:
    """Options as they are given on the command line."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise Exit(USAGE, f"--option {text} is no NAME=VALUE; give --option max_num_seqs=64, for example")
        found[name.replace("-", "_")] = value
    return found
