"""Default values of requests, by the name by which a request calls the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from ...protocol.errors import InvalidRequest, ModelNotSupported
from ...protocol.limits import Limits
from ...protocol.sampling import GRAMMARS
from .bodies.requests import PARAMETERS, ChatBody, Given, Sampling, for_template, sampling_params
from .errors import Problem

CHAT_FIELDS = ("chat_template_kwargs", "reasoning_effort", "verbosity")

FIELDS = frozenset({"max_tokens", *CHAT_FIELDS, *(field.name for field in PARAMETERS)} - set(GRAMMARS))
"""Fields that may have a default; ``CHAT_FIELDS`` only in chats."""


class Defaults:
    """By name, the fields that fill what a request leaves out."""

    def __init__(
        self, given: Mapping[str, Mapping[str, Any]], names: Collection[str], bounds: Limits
    ) -> None:
        """``names`` are those of the model, the first for requests that give none; ``ModelNotSupported`` says what of
        the defaults is wrong."""
        self.first = next(iter(names))
        self.by_name: dict[str, dict[str, Any]] = {}
        for name, fields in given.items():
            if name not in names:
                raise ModelNotSupported(
                    f"--model-defaults has {name!r:.80}, which is none of the served names {', '.join(names)}"
                )
            self.by_name[name] = self.checked(name, fields, bounds)

    def checked(self, name: str, fields: Mapping[str, Any], bounds: Limits) -> dict[str, Any]:
        unknown = sorted(fields.keys() - FIELDS)
        if unknown:
            raise ModelNotSupported(
                f"--model-defaults has {unknown[0]!r:.80} for {name}; fields with a default are"
                f" {', '.join(sorted(FIELDS))}"
            )
        try:
            body = msgspec.convert({"messages": [{"role": "user"}], **fields}, ChatBody)
            sampling_params(body, bounds, max_tokens=Given(body.max_tokens, "max_tokens"))
            for_template(body)
        except (msgspec.ValidationError, InvalidRequest, Problem) as error:
            raise ModelNotSupported(f"--model-defaults for {name}: {error}") from None
        return {field: getattr(body, field) for field in fields if getattr(body, field) is not None}

    def fill(self, body: Sampling) -> None:
        """Give a body what it leaves out; of arguments of the chat template each for itself."""
        for field, value in self.by_name.get(body.model or self.first, {}).items():
            if not hasattr(body, field) or (
                field == "max_tokens" and getattr(body, "max_completion_tokens", None) is not None
            ):
                continue
            stated = getattr(body, field)
            if stated is None:
                setattr(body, field, value)
            elif field == "chat_template_kwargs":
                setattr(body, field, value | stated)
