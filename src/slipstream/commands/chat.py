"""``slipstream chat``: talk with a model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..exit_codes import DONE
from .common import Run
from .connecting import add_service, for_standard_output, reach, sampling

if TYPE_CHECKING:
    from ..protocol.client.blocking import Client


def declare(parser: argparse.ArgumentParser) -> Run:
    add_service(parser)

    def run(found: argparse.Namespace) -> int:
        import readline  # gives input() its history and its line editing

        from ..protocol.printable import printable

        readline.set_auto_history(True)
        params = sampling(found)
        messages: list[dict[str, Any]] = []
        with reach(found, "chat") as client:
            model = printable(client.welcome.model)
            print(f"{model}. Ctrl-C ends an answer, Ctrl-D ends the talk.", file=sys.stderr)
            while True:
                try:
                    words = input("> ")
                except EOFError:
                    print()
                    return DONE
                except KeyboardInterrupt:
                    print()
                    continue
                if words.strip():
                    answer_turn(client, messages, words, params)

    return run


def answer_turn(client: Client, messages: list[dict[str, Any]], words: str, params: Any) -> None:
    """One question and its answer, which Ctrl-C ends; both then belong to the conversation.

    If the conversation is longer than the model's context, the older half of its turns is forgotten: half, so that
    there is room for some turns, which find their beginning in the prefix cache.
    """
    from ..protocol.errors import SlipstreamError
    from ..protocol.printable import printable

    asked = [*messages, {"role": "user", "content": words}]
    while True:
        try:
            answer = print_answer(client, asked, params)
            break
        except SlipstreamError as error:
            turns = len(asked) // 2
            if error.code != "context_length_exceeded" or not turns:
                print(f"{type(error).__name__}: {printable(str(error))}", file=sys.stderr)
                return
            del asked[: 2 * ((turns + 1) // 2)]
    forgotten = (len(messages) + 1 - len(asked)) // 2
    if forgotten:
        turns = len(messages) // 2
        print(
            f"(The context was full: the oldest turns are forgotten, {forgotten} of {turns}.)",
            file=sys.stderr,
        )
    messages[:] = [*asked, {"role": "assistant", "content": answer}]


def print_answer(client: Client, messages: list[dict[str, Any]], params: Any) -> str:
    """Print the next message of a conversation as it comes, up to its end or Ctrl-C, and return it."""
    answer, finish_reason = "", None
    stream = client.stream_chat(messages, params)
    try:
        for delta in stream:
            answer += delta.text
            finish_reason = delta.finish_reason
            print(for_standard_output(delta.text), end="", flush=True)
    except KeyboardInterrupt:
        stream.close()
    print()
    if finish_reason == "length" and params.max_tokens is None:
        print("(The context is full: the answer ends here.)", file=sys.stderr)
    return answer
