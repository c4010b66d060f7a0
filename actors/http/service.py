"""What every endpoint needs: the client of the gateway, and what is known of the model."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import msgspec
from starlette.responses import Response

from ...protocol.client.asynchronous import AsyncClient
from ...protocol.errors import InvalidRequest, ServiceUnavailable
from ...protocol.limits import Limits
from ..text.prompts import Prompts, load_texts
from .errors import Problem
from .tokens import Tokens


class Service:
    """The service that this face is of."""

    def __init__(
        self,
        client: AsyncClient,
        folder: str,
        model: str,
        version: str,
        bounds: Limits,
        metrics_prefix: str = "slipstream_",
    ) -> None:
        self.client = client
        self.model = model
        self.version = version
        self.bounds = bounds
        self.metrics_prefix = metrics_prefix
        tokenizer, chat_template = load_texts(Path(folder))
        self.prompts = Prompts(tokenizer, chat_template, self.bounds.max_prompt_bytes)
        self.tokens = Tokens(tokenizer)
        self.started = int(time.time())
        self.draining = False

    def check(self, model: str | None) -> None:
        """Refuse what is for another model, and what comes too late."""
        if self.draining:
            raise ServiceUnavailable("the service is stopping and accepts nothing new")
        if model is not None and model != self.model:
            message = f"the model {model!r:.200} is not served here; this is {self.model!r}"
            raise Problem(404, message, param="model", code="model_not_found")

    def about(self, kind: str, object: str) -> dict[str, Any]:
        """What every answer begins with."""
        id, created = f"{kind}-{uuid.uuid4().hex}", int(time.time())
        return {"id": id, "object": object, "created": created, "model": self.model}

    def answer(self, body: Any) -> Response:
        return Response(msgspec.json.encode(body), media_type="application/json")

    def text_of(self, tokens: list[int], where: str) -> str:
        """The text of token ids that stand in the field ``where`` of a body."""
        most, last = self.bounds.max_model_len, self.bounds.vocab_size - 1
        if len(tokens) > most:
            raise InvalidRequest(f"{where} has {len(tokens)} tokens; the limit is {most}", param=where)
        for token in tokens:
            if not 0 <= token <= last:
                raise InvalidRequest(
                    f"{where} has {token}; a token id of this model is 0 to {last}", param=where
                )
        return self.prompts.tokenizer.decode(tokens, skip_special_tokens=False)

    def echo(self, prompt: str | list[int], where: str) -> str:
        return prompt if isinstance(prompt, str) else self.text_of(prompt, where)
