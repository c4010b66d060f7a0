"""``slipstream route``: one address for many services, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse

from ..exit_codes import DONE
from .common import Run
from .extras import need


def declare(parser: argparse.ArgumentParser) -> Run:
    from ..options.route import RouteOptions, environment
    from ..runtime.options.command_line import add_arguments, show
    from ..runtime.options.sources import resolve

    add_arguments(parser, RouteOptions)
    parser.usage = "slipstream route ENDPOINT... [options]"
    parser.epilog = (
        "All services serve the same model. A request goes to the one that has most of its prefix in the cache,"
        " unless that one has far more to do than the others; and when a service is lost, what it had open goes on"
        " at another. Options can be given in the environment and in a file too, as those of slipstream serve."
    )

    def run(found: argparse.Namespace) -> int:
        import os

        given = vars(found) | {"services": found.services or None}
        resolved = resolve(RouteOptions, arguments=given, environ=environment(os.environ))
        if resolved.options.print_config:
            print(show(resolved))
            return DONE
        need("route", "engine")
        if resolved.options.http is not None:
            need("route --http", "http")
        from ..serving.route import route

        return route(resolved.options)

    return run
