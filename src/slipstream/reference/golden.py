"""Golden vectors: one example or more of every message, as plain values and as the bytes on the wire.

``python -m slipstream.reference.golden`` writes them to ``vectors/``: ``public.json`` for authors of
clients in other languages, ``refused.json`` with frames that are no messages, and ``internal.json``
with what the actors say to each other. A test holds that writing them again changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from .. import protocol
from ..protocol.codec import encode, encode_from_client, plain
from ..protocol.errors import InvalidRequest
from ..protocol.internal import Envelope
from ..protocol.messages import FromClient
from .internal_examples import INTERNAL
from .public_examples import FROM_CLIENT, REFUSED, TO_CLIENT

FOLDER = Path(protocol.__file__).parent / "vectors"

PUBLIC_ABOUT = (
    "Each frame is one ZeroMQ frame of a DEALER socket: `message` as MessagePack, whose bytes `hex` shows."
    ' In it {"hex": …} stands for binary.'
    " What a client sends may have its keys in another order, its integers in another width, and fields at"
    " their default value spelled out. What a client receives may have more fields in a later minor version."
)
REFUSED_ABOUT = (
    "Frames that the service answers with an `error` of code `invalid_request`. Where the frame has an `id`"
    " the error has it too; `says` is part of the error's message."
)
INTERNAL_ABOUT = (
    'What the actors say to each other; it can change with any version. {"hex": …} stands for binary, in'
    " which arrays of int32, int64 and float32 are little-endian."
)


def shown(plain: Any) -> Any:
    """Plain values for JSON; binary becomes ``{"hex": …}``."""
    if isinstance(plain, bytes):
        return {"hex": plain.hex()}
    if isinstance(plain, dict):
        return {key: shown(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [shown(value) for value in plain]
    return plain


def vector(name: str, message: msgspec.Struct, **more: str) -> dict[str, Any]:
    frame = encode_from_client(message) if isinstance(message, FromClient) else encode(message)
    return {"name": name, **more, "message": shown(plain(message)), "hex": frame.hex()}


def files() -> dict[str, str]:
    """The name and the content of each file in ``vectors/``."""
    public = [vector(name, message, sender="client") for name, message in FROM_CLIENT]
    public += [vector(name, message, sender="service") for name, message in TO_CLIENT]
    refused = [{"name": name, "says": says, "hex": frame.hex()} for name, frame, says in REFUSED]
    envelopes = [
        vector(name, Envelope("scheduler", 3, 2, number, message))
        for number, (name, message) in enumerate(INTERNAL)
    ]
    contents = {
        "public.json": {"about": PUBLIC_ABOUT, "vectors": public},
        "refused.json": {"about": REFUSED_ABOUT, "vectors": refused},
        "internal.json": {"about": INTERNAL_ABOUT, "vectors": envelopes},
    }
    return {
        name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in contents.items()
    }


def write(folder: str | Path, names: Iterable[str]) -> list[Path]:
    """Write these of the files into a folder, which is made if it is not there."""
    contents = files()
    paths = [Path(folder, name) for name in names]
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path in paths:
            path.write_text(contents[path.name], encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"cannot write the vectors to {str(folder)!r}: {error.strerror}") from None
    return paths


if __name__ == "__main__":
    for path in write(FOLDER, files()):
        print(path)
