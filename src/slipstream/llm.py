"""``LLM``: a model in a variable, for offline use: a private service and one connection to it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from .protocol.client.blocking import Client, OnDelta, Prompt
from .protocol.client.outputs import RequestOutput
from .protocol.client.request import check_many
from .protocol.client.session import Message
from .protocol.errors import ServiceUnavailable
from .protocol.messages import Delta
from .protocol.sampling import SamplingParams
from .sidecar import Sidecar

Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """Starts a service with ``model`` and owns it. ``options`` are those of ``slipstream serve``.

    The constructor returns when the model is loaded; it raises ``SlipstreamError`` with the reason if that
    cannot be. Use it as a context manager, or call ``shutdown``. One thread uses it at a time.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, **options: Any) -> None:
        self.sidecar = Sidecar(model, **options)
        try:
            self.client: Client = self.sidecar.client()
        except BaseException:
            self.sidecar.stop()
            raise

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close()
        self.sidecar.__exit__(*exception)

    def shutdown(self) -> None:
        """End the service. Doing so twice is harmless; in a forked child or while another thread waits for an answer
        it is a ``RuntimeError``."""
        self.client.close()
        self.sidecar.stop()

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each actor as it is now."""
        return self.sidecar.pids

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """Answer one prompt or many, all at once; the results are in the order of ``prompts``.

        A prompt is a text or a list of token ids. ``use_tqdm`` shows the progress if stderr is a terminal.
        The first request that fails ends the others and is raised.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        check_many("prompts", prompts)
        if prompts and isinstance(prompts[0], int):
            prompts = [cast(Prompt, prompts)]
        many = cast(Sequence[Prompt], prompts)
        return self._run(
            len(many), use_tqdm, lambda on_delta: self.client.generate_many(many, params, on_delta=on_delta)
        )

    def chat(
        self,
        messages: list[Message] | Sequence[list[Message]],
        params: Params = None,
        use_tqdm: bool = True,
        *,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """The next message of one conversation or of many; tools and template as for ``Client.chat``."""
        check_many("messages", messages)
        if messages and isinstance(messages[0], dict):
            messages = [cast("list[Message]", messages)]
        many = cast("Sequence[list[Message]]", messages)
        more = {"tools": tools, "tool_choice": tool_choice, "chat_template_kwargs": chat_template_kwargs}
        run = partial(self.client.chat_many, many, params, **more)  # type: ignore[arg-type]
        return self._run(len(many), use_tqdm, lambda on_delta: run(on_delta=on_delta))

    def _run(
        self, total: int, use_tqdm: bool, run: Callable[[OnDelta | None], list[RequestOutput]]
    ) -> list[RequestOutput]:
        """Ask, showing progress; if the service has ended, the error has the last lines of its log."""
        self.sidecar.check_running()
        line = ProgressLine(total) if use_tqdm and sys.stderr.isatty() else None
        try:
            return run(line.add if line is not None else None)
        except ServiceUnavailable as error:
            error.add_note(f"the log of the service:\n{self.sidecar.log}")
            raise
        finally:
            if line is not None:
                line.end()


class ProgressLine:
    """``12/100 requests, 3456 tokens, 1234 tokens/s``, rewritten a few times a second."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = self.tokens = 0
        self.begun = time.monotonic()
        self.shown = 0.0

    def add(self, number: int, delta: Delta) -> None:
        self.tokens += len(delta.token_ids)
        self.done += delta.finish_reason is not None
        if time.monotonic() - self.shown > 0.2:
            self.show("")

    def show(self, end: str) -> None:
        self.shown = time.monotonic()
        rate = self.tokens / max(self.shown - self.begun, 1e-9)
        text = f"{self.done}/{self.total} requests, {self.tokens} tokens, {rate:.0f} tokens/s"
        print(f"\r\x1b[K{text}", end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        self.show("\n")
