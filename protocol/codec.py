"""The one place where bytes become messages and messages bytes.

The wire is MessagePack by the ``msgpack`` package; ``msgspec`` gives the types. Whatever goes wrong
while reading a frame, and hostile bytes raise more than the documented exceptions, comes out as a
``ProtocolError`` that names the place, the value and what was expected.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
import msgspec

from .errors import ProtocolError, brief
from .limits import (
    MAX_CONTAINERS,
    MAX_FRAME_BYTES,
    MAX_INTERNAL_CONTAINERS,
    MAX_INTERNAL_FRAME_BYTES,
    MAX_ITEMS,
    MAX_REQUEST_ID_CHARS,
)
from .messages import Envelope, PublicIn, PublicOut

T = TypeVar("T")


def prepare(*kinds: Any) -> None:
    """Have msgspec read the annotations of messages, which it evaluates, now and not with the first message."""
    for kind in (PublicIn, PublicOut, Envelope, *kinds):
        msgspec.msgpack.Decoder(kind)


def encode(message: msgspec.Struct, *, strict: bool = False) -> bytes:
    """A message as MessagePack; bytes stay binary.

    A lone surrogate in a text becomes ``?``; with ``strict`` it is a ``UnicodeEncodeError``.
    """
    return pack(msgspec.to_builtins(message, builtin_types=(bytes,)), strict=strict)


def pack(plain: Any, *, strict: bool = False) -> bytes:
    """Plain values as MessagePack."""
    try:
        packed = msgpack.packb(plain)  # by far the faster way for texts
    except UnicodeEncodeError:
        if strict:
            raise
        packed = msgpack.packb(plain, unicode_errors="replace")
    assert packed is not None
    return packed


def decode(
    frame: bytes, kind: Any, *, max_bytes: int = MAX_FRAME_BYTES, max_containers: int = MAX_CONTAINERS
) -> Any:
    """The message of type ``kind`` in ``frame``; ``ProtocolError`` if it is none."""
    if len(frame) > max_bytes:
        raise ProtocolError(f"a frame of {len(frame)} bytes is over the limit of {max_bytes}")
    try:
        plain = unpack(frame, max_containers)
    except Exception as error:  # the boundary: hostile bytes raise far more than msgpack documents
        reason = str(error) or type(error).__name__
        raise ProtocolError(f"a frame of {len(frame)} bytes is not MessagePack: {reason}") from None
    try:
        return msgspec.convert(plain, kind)
    except Exception as error:
        field = field_of(error)
        raise ProtocolError(explain(error, plain), param=field and field.removeprefix("params.")) from None


def unpack(frame: bytes, max_containers: int = MAX_CONTAINERS) -> Any:
    """The plain values in a frame, within the bounds of ``limits``."""
    options = BOUNDS
    if len(frame) > max_containers:  # no smaller frame can hold too many
        options = BOUNDS | dict.fromkeys(("list_hook", "object_hook"), Containers(max_containers).count)
    return msgpack.unpackb(frame, **options)


class Containers:
    """Counts the arrays and maps of one frame: a byte of it can become a hundred bytes of memory."""

    def __init__(self, most: int) -> None:
        self.most = self.left = most

    def count(self, container: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"it has more than {self.most} arrays and maps")
        return container


def refuse_extension(code: int, data: bytes) -> None:
    """One without data is not over any limit."""
    raise ValueError(f"extension type {code} is not used here")


BOUNDS: dict[str, Any] = {
    "max_str_len": MAX_INTERNAL_FRAME_BYTES,
    "max_bin_len": MAX_INTERNAL_FRAME_BYTES,
    "max_array_len": MAX_ITEMS,
    "max_map_len": MAX_ITEMS,
    "max_ext_len": 0,
    "ext_hook": refuse_extension,
}
"""What msgpack accepts."""

MOST_FIELDS = 64
"""Fields of a message among which an id is looked for."""


def decode_envelope(frame: bytes) -> Envelope:
    return decode(frame, Envelope, max_bytes=MAX_INTERNAL_FRAME_BYTES, max_containers=MAX_INTERNAL_CONTAINERS)


def decode_from_client(frame: bytes) -> PublicIn:
    return decode(frame, PublicIn)


def decode_to_client(frame: bytes) -> PublicOut:
    return decode(frame, PublicOut)


def request_id(frame: bytes) -> str | None:
    """The ``id`` in a frame that is no valid message, so that its sender learns which request failed.

    Field by field, since what is wrong may be in a later one. Neither a name nor an id is an array or a map.
    """
    try:
        none = dict.fromkeys(("list_hook", "object_hook"), Containers(0).count)
        fields = msgpack.Unpacker(None, max_buffer_size=MAX_FRAME_BYTES, **BOUNDS, **none)
        fields.feed(frame)
        for _ in range(min(fields.read_map_header(), MOST_FIELDS)):
            if fields.unpack() == "id":
                found = fields.unpack()
                return found if isinstance(found, str) and len(found) <= MAX_REQUEST_ID_CHARS else None
            fields.skip()
    except Exception:  # the boundary again: there is no id to be had
        return None
    return None


def explain(error: Exception, plain: object) -> str:
    """msgspec's message, with the value that it complains about."""
    text = str(error) or type(error).__name__
    _, found, path = text.rpartition(" - at `$")
    if not found:
        return text
    value: Any = plain
    for part in path.rstrip("`").replace("[", ".[").split(".")[1:]:
        try:
            value = value[int(part[1:-1])] if part.startswith("[") else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return text
    return f"{text}: the value is {brief(value)}"


def field_of(error: Exception) -> str | None:
    """Path of the field that msgspec complains about, such as ``messages[0].role``; only its text tells."""
    complaint, _, place = str(error).rpartition(" - at ")
    path = place.rpartition("`$")[2] if complaint else ""
    complaint = complaint or place
    name = complaint.partition(" field `")[2] if complaint.startswith("Object ") else ""
    return f"{path}.{name}".replace("`", "").strip(".") or None
