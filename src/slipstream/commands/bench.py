"""``slipstream bench``: measure how busy the device is kept, and how fast a service is."""

from __future__ import annotations

import argparse

from ..exit_codes import DONE
from .common import Run
from .extras import need


def declare(parser: argparse.ArgumentParser) -> Run:
    from ..bench import grammar, overlap, serve, throughput

    benches = {
        "overlap": (overlap.declare, overlap.measure),
        "throughput": (throughput.declare, throughput.measure),
        "serve": (serve.declare, serve.measure),
        "grammar": (grammar.declare, grammar.measure),
    }
    kinds = parser.add_subparsers(metavar="|".join(benches), required=True)
    for name, (declare, measure) in benches.items():
        kind = kinds.add_parser(name, allow_abbrev=False)
        declare(kind)
        kind.set_defaults(measure=measure, name=name)

    def run(found: argparse.Namespace) -> int:
        if found.name != "serve":
            need("bench", "engine")
        elif found.base_url is not None:
            need("bench serve --base-url", "http")
        found.measure(found)
        return DONE

    return run
