"""``slipstream drill``: kill actors of a service of your own while streams are open, and compare every token."""

from __future__ import annotations

import argparse
import re

from .common import COULD_NOT_START, DONE, FAILED, Run, Stop, need


def declare(parser: argparse.ArgumentParser) -> Run:
    from ..bench.offline import add_json, count
    from ..drill import ACTORS, DEVICES, FAULTS

    def target(name: str) -> str:
        if name in (*ACTORS, "all") or re.fullmatch(r"executor\.[1-9][0-9]?", name):
            return name
        raise argparse.ArgumentTypeError(
            f"{name!r} is no actor; give {', '.join(ACTORS)}, a further rank such as executor.1, or all"
        )

    parser.add_argument(
        "--kill",
        required=True,
        type=target,
        metavar="ACTOR|all",
        help="an actor, or executor.1 for the second of two ranks",
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
        "--fault",
        choices=FAULTS,
        default="kill",
        help="kill; twice: another actor is killed during the recovery; stop: the actor stands still for 5 s;"
        " restart: as slipstream restart does it",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the instants and the order")
    add_json(parser)

    return run


def run(found: argparse.Namespace) -> int:
    need("drill", "engine")
    import asyncio
    import sys

    from ..bench.offline import write_json
    from ..drill import ACTORS, Drill, clean, summary
    from ..protocol.errors import InvalidRequest, SlipstreamError

    if found.dtype is not None and found.device == "emulated":
        raise InvalidRequest("--dtype has no effect on the emulated device; add --device cpu or leave it out")
    targets = ACTORS if found.kill == "all" else (found.kill,)
    drill = Drill(
        targets,
        found.rounds,
        found.streams,
        found.device,
        found.dtype or "float32",
        found.fault,
        found.seed,
        say=lambda text: print(text, file=sys.stderr),
    )
    try:
        result = asyncio.run(drill.run())
    except SlipstreamError as error:
        raise Stop(COULD_NOT_START if not drill.kills else FAILED, str(error)) from None
    if found.json != "-":
        print(summary(result))
    if found.json is not None:
        write_json(found.json, result)
    return DONE if clean(result) else FAILED
