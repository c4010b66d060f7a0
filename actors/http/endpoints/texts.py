"""Tokens of a text, and the text of tokens, as the service itself makes them."""

from __future__ import annotations

import time
from array import array

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ....protocol.errors import InvalidRequest
from ...text.prompts.prompts import ENCODING_BUDGET_S, PromptEncoding
from ..bodies.requests import DetokenizeBody, TokenizeBody, TokenizeFields, ending_of, for_template
from ..errors import Problem
from ..service import Service


async def tokenize(service: Service, request: Request) -> Response:
    body = await service.read_apart(request, TokenizeBody)
    return await service.beside(request, tokenized, service, body)


def tokenized(service: Service, body: TokenizeFields) -> Response:
    what = "messages" if body.prompt is None else "prompt"
    tokens = finish(encoding_of(service, body), what).tolist()
    name_of = service.prompts.tokenizer.id_to_token
    return service.answer(
        {
            "count": len(tokens),
            "max_model_len": service.bounds.max_model_len,
            "tokens": tokens,
            "token_strs": [name_of(token) for token in tokens] if body.return_token_strs else None,
        }
    )


def encoding_of(service: Service, body: TokenizeFields) -> PromptEncoding:
    if (body.prompt is None) == (body.messages is None):
        raise Problem(400, "give either prompt or messages", param="prompt")
    if body.prompt is not None:
        if body.tools is not None or body.chat_template_kwargs or body.add_generation_prompt is not None:
            given = {"tools": body.tools, "chat_template_kwargs": body.chat_template_kwargs}
            param = next((name for name, value in given.items() if value), "add_generation_prompt")
            message = (
                "tools, chat_template_kwargs and add_generation_prompt go with messages, not with prompt"
            )
            raise Problem(400, message, param=param)
        special = body.add_special_tokens is not False
        return service.prompts.of_text(body.prompt, add_special_tokens=special)
    if body.add_special_tokens is not None:
        message = "add_special_tokens goes with prompt: the chat template writes its own"
        raise Problem(400, message, param="add_special_tokens")
    given = for_template(body)
    if body.tools:
        given["tools"] = [msgspec.to_builtins(tool) for tool in body.tools]
    given |= ending_of(body)
    return service.prompts.of_conversation(body.messages or [], given)


def finish(encoding: PromptEncoding, what: str) -> array[int]:
    """The ids of the field ``what``; ``InvalidRequest`` if they take longer than the tokenizer itself would take over
    them."""
    begun = time.monotonic()
    while True:
        try:
            left = next(encoding)
        except StopIteration as end:
            return end.value
        if time.monotonic() - begun > ENCODING_BUDGET_S:
            raise InvalidRequest(
                f"the text took {ENCODING_BUDGET_S:g} s, the limit, until {left} characters before its end: shorten it",
                param=what,
            )


async def detokenize(service: Service, request: Request) -> Response:
    body = await service.read_apart(request, DetokenizeBody)
    return service.answer({"prompt": await service.beside(request, service.text_of, body.tokens, "tokens")})
