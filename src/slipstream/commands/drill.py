"""``slipstream drill``: kill actors of a service of your own while streams are open, and compare every token."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..exit_codes import COULD_NOT_START, DONE, FAILED
from .common import Exit, Run
from .extras import need

if TYPE_CHECKING:
    from ..drill.streams import StreamsDrill


def target(name: str) -> str:
    """What ``--kill`` names."""
    from ..drill.replicas import TARGETS
    from ..protocol.actors import ACTORS

    if name in (*ACTORS, *TARGETS, "all") or re.fullmatch(r"executor\.[1-9][0-9]?", name):
        return name
    raise argparse.ArgumentTypeError(
        f"{name!r} is no actor; give {', '.join(ACTORS)}, a further rank such as executor.1, or all;"
        f" with --replicas {' or '.join(TARGETS)}"
    )


def declare(parser: argparse.ArgumentParser) -> Run:
    from ..arguments import add_json, count
    from ..drill.actors import FAULTS
    from ..drill.answers import DEVICES

    parser.add_argument(
        "--kill",
        required=True,
        type=target,
        metavar="ACTOR|all",
        help="an actor, executor.1 for the second of two ranks; with --replicas: replica, a whole service, or router",
    )
    parser.add_argument(
        "--rounds", type=count, default=5, metavar="N", help="kills of each actor (default 5)"
    )
    parser.add_argument(
        "--streams", type=count, default=64, metavar="N", help="streams that are open (default 64)"
    )
    parser.add_argument("--device", choices=DEVICES, default="emulated")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        metavar="NAME",
        help="of a model: float32 compares with the answer of an undisturbed service (default); any other checks that"
        " each answer is a continuation that the model could have given",
    )
    parser.add_argument(
        "--batch-invariant",
        action="store_true",
        help="of a model: in any dtype compare with the answer of an undisturbed service (without --dtype: in its own)",
    )
    parser.add_argument(
        "--fault",
        choices=FAULTS,
        default="kill",
        help="kill; twice: another actor is killed during the recovery; stop: the actor stands still for 5 s;"
        " restart: as slipstream restart does it",
    )
    parser.add_argument(
        "--replicas", type=count, metavar="N", help="services behind a router, for --kill replica|router"
    )
    parser.add_argument(
        "--over",
        choices=("ipc", "tcp"),
        default="ipc",
        help="how a router reaches its services; tcp: with keys",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the instants and the order")
    add_json(parser)

    return run


def run(found: argparse.Namespace) -> int:
    need("drill", "engine")
    import asyncio
    import sys

    from ..drill.result import clean, summary
    from ..options.serve import MAX_SEQUENCES
    from ..protocol.errors import InvalidRequest, SlipstreamError
    from ..results import write_json

    if found.streams > MAX_SEQUENCES:
        raise InvalidRequest(
            f"--streams {found.streams} is out of range; it must be at most {MAX_SEQUENCES:,}"
        )
    if found.dtype is not None and found.device == "emulated":
        raise InvalidRequest("--dtype has no effect on the emulated device; add --device cpu or leave it out")
    if found.batch_invariant and found.device == "emulated":
        raise InvalidRequest(
            "--batch-invariant has no effect on the emulated device; add --device cpu or leave it out"
        )
    drill = drill_of(found, lambda text: print(text, file=sys.stderr))
    try:
        result = asyncio.run(drill.run())
    except SlipstreamError as error:
        raise Exit(COULD_NOT_START if not drill.kills else FAILED, str(error)) from None
    if found.json != "-":
        print(summary(result))
    if found.json is not None:
        write_json(found.json, result)
    return DONE if clean(result) else FAILED


def drill_of(found: argparse.Namespace, say: Callable[[str], None]) -> StreamsDrill:
    """The drill that was asked for."""
    from ..drill.actors import Drill
    from ..drill.replicas import TARGETS, ReplicaDrill
    from ..protocol.actors import ACTORS
    from ..protocol.errors import InvalidRequest

    dtype = found.dtype or ("auto" if found.batch_invariant else "float32")
    if found.kill not in TARGETS:
        if found.replicas is not None or found.over != "ipc":
            raise InvalidRequest(
                f"--replicas and --over have no effect with --kill {found.kill}; leave them out"
            )
        targets = ACTORS if found.kill == "all" else (found.kill,)
        return Drill(
            targets,
            found.rounds,
            found.streams,
            found.device,
            dtype,
            found.fault,
            found.seed,
            say,
            batch_invariant=found.batch_invariant,
        )
    if found.replicas is None or found.replicas < 2:
        raise InvalidRequest(
            f"--kill {found.kill} needs --replicas N, with at least 2 services behind the router"
        )
    if found.fault != "kill":
        raise InvalidRequest(f"--fault {found.fault} is for actors; a {found.kill} can only be killed")
    return ReplicaDrill(
        found.kill,
        found.replicas,
        found.rounds,
        found.streams,
        over_tcp=found.over == "tcp",
        device=found.device,
        dtype=dtype,
        seed=found.seed,
        say=say,
        batch_invariant=found.batch_invariant,
    )
