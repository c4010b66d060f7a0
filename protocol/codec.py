"""The one place where bytes become messages and messages bytes.

The wire is MessagePack. What the service itself wrote, between its actors and towards clients, ``msgspec`` reads and
writes straight into the types of ``messages``. What a client sends comes from strangers: it goes through the
``msgpack`` package, which bounds lengths, depth and the number of containers before a message is made of it.
Whatever goes wrong while reading a frame, and hostile bytes raise more than the documented exceptions, comes out as
a ``ProtocolError`` that names the place, the value and what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, get_args

import msgpack
import msgspec

from .errors import ProtocolError, brief
from .internal import Envelope
from .limits import (
    MAX_ALL_ITEMS,
    MAX_CONTAINERS,
    MAX_FRAME_BYTES,
    MAX_INTERNAL_FRAME_BYTES,
    MAX_ITEMS,
    MAX_KEYS,
    MAX_REQUEST_ID_CHARS,
)
from .listed import UNLISTED, listed
from .messages import FromClient, PublicIn, PublicOut

T = TypeVar("T")

ENCODER = msgspec.msgpack.Encoder()

FIRST_BYTES = 4096
"""What msgpack takes for a frame before it knows how long it gets. By itself it takes a megabyte, which a process that
gives memory back has to have cleared by the kernel each time: 34 us for a request, instead of 2."""


@cache
def to_client() -> msgspec.msgpack.Decoder[PublicOut]:
    """Made when it is first needed: a program that only imports the client need not wait for it."""
    return msgspec.msgpack.Decoder(PublicOut)


@cache
def between_actors() -> msgspec.msgpack.Decoder[Envelope]:
    return msgspec.msgpack.Decoder(Envelope)


def prepare(*kinds: Any) -> None:
    """Have msgspec read the annotations of messages, which it evaluates, now and not with the first message."""
    to_client()
    between_actors()
    for kind in (PublicIn, *kinds):
        msgspec.msgpack.Decoder(kind)


def encode(message: msgspec.Struct) -> bytes:
    """Encode a message of the service; bytes stay binary, and a lone surrogate in a text becomes ``?``."""
    try:
        return ENCODER.encode(message)
    except UnicodeEncodeError:
        return pack(plain(message))


def encode_behind(prefix: bytes, message: msgspec.Struct) -> bytes | bytearray:
    """``prefix`` and what ``encode`` gives, written in one piece."""
    frame = bytearray(prefix)
    try:
        ENCODER.encode_into(message, frame, len(prefix))
    except UnicodeEncodeError:
        return prefix + encode(message)
    return frame


def encode_from_client(message: FromClient) -> bytes:
    """Encode a client's message in the shortest form of MessagePack.

    A text with a lone surrogate is a ``UnicodeEncodeError``, and values that no message can hold raise other errors.
    """
    packed = msgpack.packb(plain(message), buf_size=FIRST_BYTES)
    assert packed is not None
    return packed


def plain(message: msgspec.Struct) -> Any:
    """A message as maps, lists and the other values of MessagePack."""
    return msgspec.to_builtins(message, builtin_types=(bytes,))


def pack(values: Any) -> bytes:
    """Plain values as MessagePack; a lone surrogate in a text becomes ``?``."""
    packed = msgpack.packb(values, unicode_errors="replace", buf_size=FIRST_BYTES)
    assert packed is not None
    return packed


@cache
def from_client() -> dict[str, type]:
    """The messages of clients by what names them."""
    kinds: tuple[type[msgspec.Struct], ...] = get_args(PublicIn)
    return {str(kind.__struct_config__.tag): kind for kind in kinds}


def decode_from_client(frame: bytes) -> PublicIn:
    """Decode a client's message; ``ProtocolError`` if it is none within the bounds."""
    return decode(frame, PublicIn)


def kind_named(values: Any, kind: Any) -> Any:
    """``kind``, or of the messages of clients the one that is named: msgspec looks at all types of a union anew each
    time, which takes 7 us."""
    if kind is PublicIn and isinstance(values, dict) and isinstance(tag := values.get("t"), str):
        return from_client().get(tag, kind)
    return kind


def decode_to_client(frame: bytes) -> PublicOut:
    """Decode a message of the service to a client."""
    return decode_trusted(frame, to_client(), MAX_FRAME_BYTES)


def decode_envelope(frame: bytes | memoryview) -> Envelope:
    """Decode the envelope of an actor's message to another."""
    return decode_trusted(frame, between_actors(), MAX_INTERNAL_FRAME_BYTES)


def decode_trusted(frame: bytes | memoryview, decoder: msgspec.msgpack.Decoder[T], max_bytes: int) -> T:
    """The message in a frame that the service itself wrote; ``ProtocolError`` if it is none."""
    check_size(frame, max_bytes)
    try:
        return decoder.decode(frame)
    except Exception:  # read once more the long way, which names the value that is wrong
        return decode(frame, decoder.type, max_bytes=max_bytes)


def decode(frame: bytes | memoryview, kind: Any, *, max_bytes: int = MAX_FRAME_BYTES) -> Any:
    """The message of type ``kind`` in a frame of anybody; ``ProtocolError`` if it is none within the bounds."""
    check_size(frame, max_bytes)
    try:
        values = unpack(bytes(frame))
    except Exception as error:  # the boundary: hostile bytes raise far more than msgpack documents
        reason = str(error) or type(error).__name__
        raise ProtocolError(f"a frame of {len(frame)} bytes is not MessagePack: {reason}") from None
    try:
        return msgspec.convert(values, kind_named(values, kind))
    except Exception as error:
        field = field_of(error)
        raise ProtocolError(explain(error, values), param=field and field.removeprefix("params.")) from None


def check_size(frame: bytes | memoryview, max_bytes: int) -> None:
    if len(frame) > max_bytes:
        raise ProtocolError(f"a frame of {len(frame)} bytes is over the limit of {max_bytes}")


def unpack(frame: bytes) -> Any:
    """The plain values in a frame, within the bounds of ``limits``."""
    options = BOUNDS
    if len(frame) > MAX_CONTAINERS:  # no smaller frame can hold too many
        options = BOUNDS | dict.fromkeys(("list_hook", "object_hook"), Containers().count)
    return msgpack.unpackb(frame, **options)


class Containers:
    """Counts the arrays and maps of one frame and what is in them: a byte of it can become a hundred bytes of memory,
    and all of it is looked at while others wait."""

    def __init__(self, most: int = MAX_CONTAINERS) -> None:
        self.most = self.left = most
        self.items_left = MAX_ALL_ITEMS

    def count(self, container: Any) -> Any:
        self.left -= 1
        self.items_left -= len(container)
        if self.left < 0:
            raise ValueError(f"it has more than {self.most} arrays and maps")
        if self.items_left < 0:
            raise ValueError(f"its arrays and maps have more than {MAX_ALL_ITEMS} items")
        return container


def refuse_extension(code: int, data: bytes) -> None:
    """One without data is not over any limit."""
    raise ValueError(f"extension type {code} is not used here")


BOUNDS: dict[str, Any] = {
    "max_str_len": MAX_INTERNAL_FRAME_BYTES,
    "max_bin_len": MAX_INTERNAL_FRAME_BYTES,
    "max_array_len": MAX_ITEMS,
    "max_map_len": MAX_KEYS,
    "max_ext_len": 0,
    "ext_hook": refuse_extension,
}
"""What msgpack accepts."""

MAX_FIELDS = 64
"""Fields of a message among which an id is looked for: more than any message has."""


def request_id(frame: bytes) -> str | None:
    """The ``id`` in a frame that is no valid message, so that its sender learns which request failed.

    Field by field, since what is wrong may be in a later one. Neither a name nor an id is an array or a map.
    """
    try:
        none = dict.fromkeys(("list_hook", "object_hook"), Containers(0).count)
        fields = msgpack.Unpacker(None, max_buffer_size=MAX_FRAME_BYTES, **BOUNDS, **none)
        fields.feed(frame)
        for _ in range(min(fields.read_map_header(), MAX_FIELDS)):
            if fields.unpack() == "id":
                found = fields.unpack()
                return found if isinstance(found, str) and len(found) <= MAX_REQUEST_ID_CHARS else None
            fields.skip()
    except Exception:  # the boundary again: there is no id to be had
        return None
    return None


AT = " - at `$"
"""What comes before a path in msgspec's messages."""

ANY_KEY = "[...]"
"""How msgspec writes that a value is that of some key of a map: the field that is wrong is the map."""

MAX_NAMED_CHARS = 200
"""Most characters of a name or a value that an error quotes: two lines of a terminal."""


def explain(error: Exception, plain: object, kind: Any = None) -> str:
    """msgspec's message, with the value that it complains about and, of one that is not listed in ``kind``, those that
    are."""
    said, found, value = complaint(error, plain, kind)
    return f"{said}{AT}{shortened(found)}{value}" if found else said


def complaint(error: Exception, plain: object, kind: Any = None) -> tuple[str, str, str]:
    """The parts of ``explain``: what is said, the path in msgspec's form (none at the top), and the value's words."""
    said, found, path = (str(error) or type(error).__name__).rpartition(AT)
    said, path = (said, path) if found else (path, "")
    parts = path.partition(ANY_KEY)[0].rstrip("`").replace("[", ".[").split(".")[1:]
    if said.startswith(UNLISTED) and kind is not None:
        said = f"Expected `{listed(kind, parts)}`"
    value: Any = plain
    for part in parts:
        try:
            value = value[int(part[1:-1])] if part.startswith("[") else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return shortened(said), path, ""
    return shortened(said), path, f": the value is {brief(value)}"


def field_of(error: Exception) -> str | None:
    """Path of the field that msgspec complains about, such as ``messages[0].role``; only its text has it."""
    complaint, _, place = str(error).rpartition(" - at ")
    path = place.rpartition("`$")[2] if complaint else ""
    complaint = complaint or place
    name = complaint.partition(" field `")[2] if complaint.startswith("Object ") else ""
    return shortened(f"{path}.{name}".replace("`", "").strip(".").partition(ANY_KEY)[0]) or None


UNKNOWN = "Object contains unknown field"
"""How msgspec says so; its errors have no fields."""

NUMBER = re.compile(r"\[\d+\]")


WHOLE = re.compile("Expected `[^`]*int[^`]*`, got `float`")
"""How msgspec says that a whole number was expected where another was written, or one such as 5.0."""


def mendable(error: msgspec.ValidationError) -> Callable[[Any], Any] | None:
    """What may mend the value that msgspec complains about, if something may."""
    if str(error).startswith(UNKNOWN):
        return without_nulls
    return as_whole if WHOLE.match(str(error)) else None


def convert(plain: Any, kind: type[T]) -> T:
    """Plain values as ``kind``, in which a null of an unknown field is as good as none, and 5.0 as good as 5."""
    seen: set[tuple[Any, str]] = set()
    while True:
        try:
            return msgspec.convert(plain, kind)
        except msgspec.ValidationError as error:
            _, below, path = str(error).rpartition("`$")  # none at the top
            place = NUMBER.sub(".[]", path.rstrip("`")) if below else ""
            mend = mendable(error)
            if mend is None or ANY_KEY in place or (mend, place) in seen:
                raise
            seen.add((mend, place))  # of all items of a list at once, so that there are few of them
            plain = mended(plain, place.split(".")[1:], mend)


def mended(plain: Any, place: list[str], mend: Callable[[Any], Any]) -> Any:
    """A copy with what stands at this place mended."""
    if not place:
        return mend(plain)
    if isinstance(plain, list) and place[0] == "[]":
        return [mended(item, place[1:], mend) for item in plain]
    if isinstance(plain, dict) and place[0] in plain:
        return plain | {place[0]: mended(plain[place[0]], place[1:], mend)}
    return plain


def without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: item for key, item in value.items() if item is not None}


def as_whole(value: Any) -> Any:
    """A whole number that was written as ``5.0``; beyond 2^53 a float may stand for another one than was written."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53 else value


def shortened(text: str) -> str:
    """The beginning of a text that a sender may have made as long as a frame."""
    return text if len(text) <= MAX_NAMED_CHARS else f"{text[:MAX_NAMED_CHARS]}..."
