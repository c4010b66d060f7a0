"""Tokens of a text, and the text of tokens, as the service itself makes them."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .bodies import DetokenizeBody, TokenizeBody, TokenizeFields
from .chat import plain_messages
from .errors import Problem
from .service import Service


async def tokenize(service: Service, request: Request) -> Response:
    body = await service.read(request, TokenizeBody)
    return await service.beside(request, tokenized, service, body)


def tokenized(service: Service, body: TokenizeFields) -> Response:
    tokens = tokens_of(service, body)
    named = [service.prompts.tokenizer.id_to_token(token) for token in tokens]
    return service.answer(
        {
            "count": len(tokens),
            "max_model_len": service.bounds.max_model_len,
            "tokens": tokens,
            "token_strs": named if body.return_token_strs else None,
        }
    )


def tokens_of(service: Service, body: TokenizeFields) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise Problem(400, "give either prompt or messages", param="prompt")
    if body.prompt is not None:
        if body.tools is not None or body.chat_template_kwargs or body.add_generation_prompt is not None:
            message = (
                "tools, chat_template_kwargs and add_generation_prompt go with messages, not with prompt"
            )
            raise Problem(400, message)
        special = body.add_special_tokens is not False
        return service.prompts.of_text(body.prompt, add_special_tokens=special).tolist()
    if body.add_special_tokens is not None:
        message = "add_special_tokens goes with prompt: the chat template writes its own"
        raise Problem(400, message, param="add_special_tokens")
    given: dict[str, Any] = dict(body.chat_template_kwargs or {})
    if body.tools:
        given["tools"] = [msgspec.to_builtins(tool) for tool in body.tools]
    messages = plain_messages(body.messages or [])
    prompt = body.add_generation_prompt is not False
    return service.prompts.of_conversation(messages, given, add_generation_prompt=prompt).tolist()


async def detokenize(service: Service, request: Request) -> Response:
    body = await service.read(request, DetokenizeBody)
    return service.answer({"prompt": await service.beside(request, service.text_of, body.tokens, "tokens")})
