"""``slipstream protocol``: what a client in another language needs: the messages, a JSON Schema, golden vectors."""

from __future__ import annotations

import argparse

from ..exit_codes import DONE
from .common import Run


def declare(parser: argparse.ArgumentParser) -> Run:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--document",
        action="store_true",
        help="print every message, error and limit in Markdown (the default)",
    )
    what.add_argument("--schema", action="store_true", help="print a JSON Schema of the messages")
    what.add_argument(
        "--vectors",
        metavar="DIR",
        help="write golden vectors there: public.json with each message and its bytes, refused.json with frames"
        " that a service refuses",
    )

    def run(found: argparse.Namespace) -> int:
        from ..reference import golden
        from ..reference import schema as reference

        if found.vectors is not None:
            for path in golden.write(found.vectors, ("public.json", "refused.json")):
                print(path)
        elif found.schema:
            print(reference.schema_text(), end="")
        else:
            print(reference.document(), end="")
        return DONE

    return run
