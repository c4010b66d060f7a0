"""The request of a client: what is checked before it is sent, so that a mistake is an error where it was made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgpack
import msgspec

from ..codec import encode_from_client, unpack
from ..errors import InvalidRequest, brief
from ..limits import MAX_ALL_ITEMS, MAX_CHOICES, MAX_CONTAINERS, MAX_FRAME_BYTES, MAX_ITEMS, MAX_KEYS
from ..messages import Generate
from ..sampling import SamplingParams


def answer_count(params: SamplingParams) -> int:
    """``n``, or some number where it is none that the gateway accepts: it will answer with an error."""
    return params.n if isinstance(params.n, int) and 1 <= params.n <= MAX_CHOICES else 1


def check_asked(prompt: object, messages: object) -> None:
    """``InvalidRequest`` unless there are messages, or else a prompt, of a type that can be asked."""
    if messages is not None and not isinstance(messages, list):
        raise InvalidRequest(
            f"messages is of type {type(messages).__name__}; give a list of dict", param="messages"
        )
    if messages is None and not isinstance(prompt, str | list):
        raise InvalidRequest(
            f"prompt is of type {type(prompt).__name__}; give a str or a list of int", param="prompt"
        )


def check_many(name: str, values: object) -> None:
    """``InvalidRequest`` unless these are several, which have an order and can be counted."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InvalidRequest(f"{name} is of type {type(values).__name__}; give a list", param=name)


def check_seconds(name: str, seconds: object) -> float:
    """A time that somebody is ready to wait; ``InvalidRequest`` unless it is a number above 0."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise InvalidRequest(f"{name}={brief(seconds)}; give a number of seconds above 0", param=name)
    return seconds


def check_params(params: SamplingParams | None) -> SamplingParams:
    """The parameters, or the default ones for None; ``InvalidRequest`` if they are of another type."""
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise InvalidRequest(
            f"params is of type {type(params).__name__}; give a SamplingParams(...) or None", param="params"
        )
    return params


def outsized(value: object, path: str) -> str | None:
    """Path, as errors have it, of the first whole number that no frame can hold, in what a request holds."""
    items: Iterable[tuple[str, object]] = ()
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**64 else path.removeprefix("params.")
    if isinstance(value, dict):
        items = ((f"{path}.{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        items = ((f"{path}[{place}]", item) for place, item in enumerate(value))
    elif isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
        items = ((f"{path}.{name}".lstrip("."), getattr(value, name)) for name in names)
    found = (outsized(item, where) for where, item in items)
    return next((one for one in found if one is not None), None)


def at_fault(request: Generate) -> str:
    """The field of a request that cannot be sent that is to blame: the one that could not be even alone, or else the
    largest."""
    held = request.params if isinstance(request.params, SamplingParams) else ()
    parts = {
        name: getattr(struct, name)
        for struct in (request, held)
        if isinstance(struct, msgspec.Struct)
        for name in struct.__struct_fields__
    }
    if held:
        del parts["params"]
    return max(parts, key=lambda name: weight(parts[name]))


def weight(value: object) -> float:
    """Bytes of a value in a frame; infinite if it cannot be in one."""
    try:
        packed = msgpack.packb(msgspec.to_builtins(value, builtin_types=(bytes,)))
        assert packed is not None
        unpack(packed)
    except Exception:  # as many kinds as there are values
        return math.inf
    return len(packed)


def encode_request(request: Generate) -> bytes:
    """The frame of a request. Whether its values are valid the gateway decides; here, whether it can be sent at all."""
    try:
        frame = encode_from_client(request)
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"a text of the request has the lone surrogate {error.object[error.start]!r} at character"
            f" {error.start}, which no UTF-8 can hold; send whole characters",
            param=at_fault(request),
        ) from None
    except OverflowError:
        path = outsized(request, "")
        raise InvalidRequest(
            f"{path or 'a number'} cannot be sent: a whole number is at least -2**63 and less than 2**64; give"
            " such a one, or a float",
            param=path,
        ) from None
    except Exception as error:  # values of any type, from a user: an array's integers, a loop in a list, …
        field = at_fault(request)
        raise InvalidRequest(
            f"{field} cannot be sent: {str(error) or type(error).__name__}; give plain values: texts, numbers,"
            " lists and dicts of Python's own",
            param=field,
        ) from None
    if len(frame) > MAX_FRAME_BYTES:
        raise InvalidRequest(
            f"the request has {len(frame)} bytes; a message has at most {MAX_FRAME_BYTES}",
            param=at_fault(request),
        )
    try:
        unpack(frame)
    except Exception as error:  # what the service cannot even read, it cannot report as this request's error
        reason = str(error) or type(error).__name__
        raise InvalidRequest(
            f"the request cannot be sent: {reason}; keys are texts, and a message has at most"
            f" {MAX_CONTAINERS} arrays and maps, {MAX_ITEMS} items in an array, {MAX_KEYS} keys in a map"
            f" and {MAX_ALL_ITEMS} items in all: send less",
            param=at_fault(request),
        ) from None
    return frame
