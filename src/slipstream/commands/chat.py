"""``slipstream chat``: talk with a model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..exit_codes import DONE
from .common import Run, add_service, for_standard_output, reach, sampling

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
    """One question and its answer, which Ctrl-C ends; both then belong to the conversation."""
    from ..protocol.errors import SlipstreamError
    from ..protocol.printable import printable

    messages.append({"role": "user", "content": words})
    answer = ""
    stream = client.stream_chat(messages, params)
    try:
        for delta in stream:
            answer += delta.text
            print(for_standard_output(delta.text), end="", flush=True)
    except KeyboardInterrupt:
        stream.close()
    except SlipstreamError as error:
        messages.pop()
        print(f"{type(error).__name__}: {printable(str(error))}", file=sys.stderr)
        return
    print()
    messages.append({"role": "assistant", "content": answer})
