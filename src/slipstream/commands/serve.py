"""``slipstream serve``: start a service and run it until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse

from ..exit_codes import DONE
from .common import Run
from .extras import need


def declare(parser: argparse.ArgumentParser) -> Run:
    from ..options.serve import ServeOptions
    from ..runtime.options.command_line import add_arguments, show
    from ..runtime.options.sources import resolve

    add_arguments(parser, ServeOptions)
    parser.usage = "slipstream serve [MODEL] [options]"
    parser.epilog = (
        "Each option can also be given in the environment, --max-num-seqs as SLIPSTREAM_MAX_NUM_SEQS, or in"
        " the file, as max-num-seqs. The command line wins over the environment, and that over the file."
    )

    def run(found: argparse.Namespace) -> int:
        resolved = resolve(ServeOptions, arguments=vars(found))
        if resolved.options.print_config:
            print(show(resolved))
            return DONE
        need("serve", "engine")
        if resolved.options.http is not None:
            need("serve --http", "http")
        if resolved.options.otlp_traces_endpoint is not None:
            need("serve --otlp-traces-endpoint", "otel")
        from ..serving.service import serve

        return serve(resolved.options)

    return run
