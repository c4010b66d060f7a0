"""``slipstream bench``: measure how busy the device is kept, and how fast a service is."""

from __future__ import annotations

import argparse

from .common import DONE, Run, need


def declare(parser: argparse.ArgumentParser) -> Run:
    from .. import bench_grammar
    from ..bench import COMMANDS

    benches = COMMANDS | {"grammar": (bench_grammar.declare, bench_grammar.measure)}
    kinds = parser.add_subparsers(metavar="|".join(benches), required=True)
    for name, (declare, measure) in benches.items():
        kind = kinds.add_parser(name, allow_abbrev=False)
        declare(kind)
        kind.set_defaults(measure=measure)

    def run(found: argparse.Namespace) -> int:
        need("bench", "engine")
        found.measure(found)
        return DONE

    return run
