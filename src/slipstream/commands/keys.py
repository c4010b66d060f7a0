"""``slipstream keys``: make the keys with which clients on other machines reach a service."""

from __future__ import annotations

import argparse
import re

from ..exit_codes import DONE
from .common import Run


def declare(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("folder", metavar="FOLDER", help="where the keys of the service are, or are to be")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the clients that get a key")
    parser.usage = "slipstream keys FOLDER [NAME...]"
    parser.epilog = (
        "Start the service with --curve-keys FOLDER. A client uses FOLDER/NAME.key, as Client(endpoint,"
        " curve=...) or by SLIPSTREAM_CLIENT_KEY. To shut a client out, take its line out of FOLDER/allowed."
    )

    def run(found: argparse.Namespace) -> int:
        from pathlib import Path

        from ..protocol.errors import InvalidRequest
        from ..runtime.key_folder import KeyFolder

        folder = KeyFolder(Path(found.folder))
        for name in found.names:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or name == "server":
                raise InvalidRequest(f"{name!r} is no name for a client; use letters, digits and . _ -")
        if not folder.server_file.exists():
            folder.make_server()
            print(
                f"{folder.server_file}  the service's own key: slipstream serve --curve-keys {found.folder}"
            )
        for name in found.names:
            print(f"{folder.make_client(name)}  the key of client {name}: it may connect from now on")
        return DONE

    return run
