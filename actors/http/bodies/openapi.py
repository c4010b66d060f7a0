"""``/openapi.json``: the table of endpoints as a document, from the same types that check the bodies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ....protocol.sampling import RANGES
from .answers import ErrorAnswer

REF = "#/components/schemas/{name}"


class Described(NamedTuple):
    """The description of one endpoint in the document."""

    method: str
    path: str
    summary: str
    body: type | None
    answer: type | None
    """None: text that is no JSON."""
    key: bool
    """It needs the API key, where there is one."""
    error: type = ErrorAnswer


ERRORS = {
    "400": "the request can never succeed as it stands",
    "401": "the API key is missing or wrong",
    "404": "no such model",
    "408": "not finished within its own deadline_s, or its body did not come in time",
    "413": "the body is too long",
    "415": "the body is not sent as application/json, or encoded",
    "421": "without a key, Host has to be an address, localhost or a listed name",
    "429": "no room now; try again after Retry-After seconds",
    "500": "an error of the service",
    "503": "the service is stopping, or restarting a part of itself; try again after Retry-After seconds",
}
KEYS = {
    "key": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
"""The ways to give the API key, either of which is enough."""

WITHOUT_BODY = ("401", "421", "500")


def document(endpoints: Sequence[Described], version: str, bounds: dict[str, int]) -> dict[str, Any]:
    """The OpenAPI document; ``bounds`` has the limits that depend on the model."""
    types: list[Any] = [ErrorAnswer]
    for endpoint in endpoints:
        own = (endpoint.body, endpoint.answer, endpoint.error)
        types += [kind for kind in own if kind is not None and kind not in types]
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    schema_of = dict(zip(types, schemas, strict=True))
    for component in components.values():
        state_ranges(component.get("properties", {}), bounds)
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        path = endpoint.path.replace(":path}", "}")
        paths.setdefault(path, {})[endpoint.method.lower()] = operation(endpoint, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Slipstream", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": KEYS,
        },
    }


def operation(endpoint: Described, schema_of: dict[Any, Any]) -> dict[str, Any]:
    codes = ERRORS if endpoint.body is not None else dict.fromkeys(WITHOUT_BODY, "")
    if endpoint.method == "POST":
        codes = codes | {"400": ""}
    if "{" in endpoint.path:
        codes = codes | {"404": ""}
    schema = {"anyOf": [schema_of[kind] for kind in dict.fromkeys((endpoint.error, ErrorAnswer))]}
    error = {"application/json": {"schema": schema if len(schema["anyOf"]) > 1 else schema_of[ErrorAnswer]}}
    answers = {code: {"description": ERRORS[code], "content": error} for code in codes}
    content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    if endpoint.answer is not None:
        content = {"application/json": {"schema": schema_of[endpoint.answer]}}
        if endpoint.path in ("/health", "/ready"):
            answers["503"] = {"description": "not so", "content": dict(content)}
    properties = getattr(endpoint.body, "__struct_fields__", ())
    if "stream" in properties:
        content["text/event-stream"] = {}
    described: dict[str, Any] = {
        "summary": endpoint.summary,
        "responses": {"200": {"description": "the answer", "content": content}} | answers,
        "security": [*({name: []} for name in KEYS), {}] if endpoint.key else [],
    }
    if endpoint.body is not None:
        content = {"application/json": {"schema": schema_of[endpoint.body]}}
        described["requestBody"] = {"required": True, "content": content}
    names = re.findall(r"{(\w+)", endpoint.path)
    if names:
        schema = {"type": "string", "minLength": 1}
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": schema} for name in names
        ]
    return described


def state_ranges(properties: dict[str, Any], bounds: dict[str, int]) -> None:
    """Write the range of each sampling parameter into its schema."""
    for name, (low, high, above) in RANGES.items():
        for option in properties.get(name, {}).get("anyOf", ()):
            if option.get("type") in ("integer", "number"):
                option["exclusiveMinimum" if above else "minimum"] = low
                option["maximum"] = bounds[high] if isinstance(high, str) else high
                if name == "max_tokens" and "prompt" in properties:
                    option["minimum"] = 0  # with ``echo``: the prompt alone
