"""``slipstream generate``: answer prompts and print the answers as they come."""

from __future__ import annotations

import argparse

from ..exit_codes import DONE
from .common import Run
from .connecting import add_service, for_standard_output, reach, sampling


def declare(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="several are answered at once")
    add_service(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per prompt, when all are finished"
    )

    def run(found: argparse.Namespace) -> int:
        import msgspec

        params = [sampling(found)] * len(found.prompts)
        with reach(found, "generate") as client:
            if found.json:
                for output in client.generate_many(found.prompts, params):
                    print(msgspec.json.encode(output).decode())
            elif len(found.prompts) == 1:
                for delta in client.stream(found.prompts[0], params[0]):
                    print(for_standard_output(delta.text), end="", flush=True)
                print()
            else:
                printer = Interleaved()
                client.generate_many(
                    found.prompts,
                    params,
                    on_delta=lambda number, delta: printer.add(
                        number, for_standard_output(delta.text), delta.finish_reason is not None
                    ),
                )
        return DONE

    return run


class Interleaved:
    """Prints several answers as they come, whole lines at a time, each with the number of its prompt."""

    def __init__(self) -> None:
        self.waiting: dict[int, str] = {}

    def add(self, number: int, text: str, last: bool) -> None:
        *lines, rest = (self.waiting.get(number, "") + text).split("\n")
        if last:
            lines.append(rest)
            rest = ""
        self.waiting[number] = rest
        for line in lines:
            print(f"[{number}] {line}", flush=True)
