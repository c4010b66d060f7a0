"""The spans and attributes of a finished request, in OpenTelemetry's names for generative models.

``gen_ai.latency.*`` are vLLM's.
"""

from __future__ import annotations

from ...runtime.request_trace import Attributes, RequestTrace
from .ledger import Request

ASKED = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "stop_strings": "gen_ai.request.stop_sequences",
    "n": "gen_ai.request.choice.count",
}
"""Attributes of the parameters of sampling."""


def request_trace(request: Request, model: str, now: float) -> RequestTrace:
    """The request from its arrival until now, with the parts that it went through."""
    operation = "chat" if request.marks else "text_completion"
    begun, first = request.accepted_at, request.first_at
    if first is None and request.delivered_tokens:
        first = now
    attributes: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "slipstream",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": request.id,
        "gen_ai.usage.input_tokens": request.prompt_tokens,
        "gen_ai.usage.output_tokens": request.delivered_tokens,
        "gen_ai.usage.cache_read.input_tokens": request.cached_tokens,
        "gen_ai.latency.e2e": now - begun,
    }
    for name, attribute in ASKED.items():
        value = getattr(request.params, name)
        if value is not None and value != []:
            attributes[attribute] = value
    reasons = [answer.reason for answer in request.answers if answer.reason]
    if reasons:
        attributes["gen_ai.response.finish_reasons"] = reasons
    if request.error:
        attributes["error.type"] = request.error
    parts: list[tuple[str, float, float]] = []
    if request.planned_at is not None:
        queued = request.planned_at - request.queued_s
        parts = [("tokenize", begun, queued), ("queue", queued, request.planned_at)]
        parts += [("prefill", request.planned_at, now if first is None else first)]
        attributes["gen_ai.latency.time_in_queue"] = request.queued_s
    if first is not None:
        parts.append(("decode", first, now))
        attributes["gen_ai.latency.time_to_first_token"] = first - begun
    return RequestTrace(
        name=f"{operation} {model}",
        traceparent=request.traceparent,
        begun_at=begun,
        ended_at=now,
        parts=parts,
        attributes=attributes,
        error=request.error,
    )
