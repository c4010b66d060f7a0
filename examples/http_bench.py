"""What a token of a stream costs the HTTP frontend, beside that of another version if its command is given.

    python examples/http_bench.py [--streams 64] [--rounds 15] [--step-ms 5] [--than FOLDER/.venv/bin/slipstream]

Services on emulated devices, one of this version and one of the other, have the same streams in turns: chats, then
completions. Printed are microseconds of processor time of the frontend's process for one token, all that it does for it
included: the median of the rounds, and all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from slipstream.serving.service import BUNDLED_MODEL

TOKENS = 256

ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chats": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Tell me a story."}]}),
    "completions": ("/v1/completions", {"prompt": "Once upon a time"}),
}
"""By kind: where it is asked for, and with what."""

SLIPSTREAM = str(Path(sys.executable).with_name("slipstream"))


@contextmanager
def service(command: str, options: argparse.Namespace) -> Iterator[str]:
    """The address of a service that runs meanwhile."""
    read, write = os.pipe()
    given = ["--device", "emulated", "--emulated-step-ms", str(options.step_ms)]
    given += ["--max-num-seqs", str(options.streams), "--http", "127.0.0.1:0", "--ready-fd", str(write)]
    process = subprocess.Popen(
        [command, "serve", options.model, *given],
        pass_fds=[write],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    try:
        with os.fdopen(read) as ready:
            yield json.loads(ready.readline())["http"]
    finally:
        process.terminate()
        process.wait()


def processor_us(pid: int) -> float:
    """What all threads of a process have taken of the processors."""
    ran = [path.read_text().split()[0] for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(map(int, ran)) * 1e-3


def frontend_of(url: str) -> int:
    """The process that answers there."""
    with urlopen(f"{url}/health") as answer:
        return next(actor["pid"] for actor in json.load(answer)["actors"] if actor["name"] == "http")


async def stream(url: str, kind: str, number: int) -> int:
    """Read one stream to its end; how many tokens it had."""
    path, body = ASKED[kind]
    body = body | {"stream": True, "max_tokens": TOKENS, "ignore_eos": True, "seed": number}
    content = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    last = b""
    while part := await reader.read(1 << 16):
        last = last[-4000:] + part
    writer.close()
    _, found, usage = last.rpartition(b'"completion_tokens":')
    if not found:
        raise RuntimeError(f"a stream of {url} ended with {last[-300:]!r}")
    return int(usage.partition(b",")[0])


async def us_per_token(url: str, kind: str, streams: int) -> float:
    pid = frontend_of(url)
    before = processor_us(pid)
    tokens = await asyncio.gather(*(stream(url, kind, number) for number in range(streams)))
    return (processor_us(pid) - before) / sum(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--step-ms", type=float, default=5.0)
    parser.add_argument("--model", default=str(BUNDLED_MODEL), help="folder that both serve")
    parser.add_argument("--than", metavar="COMMAND", help="the command slipstream of another version")
    options = parser.parse_args()
    commands = {"this": SLIPSTREAM} | ({"other": options.than} if options.than else {})
    with ExitStack() as stack:
        urls = {name: stack.enter_context(service(command, options)) for name, command in commands.items()}
        found: dict[tuple[str, str], list[float]] = {(kind, name): [] for kind in ASKED for name in urls}
        for turn in range(1 + options.rounds):  # the first warms up
            for kind, name in found:
                spent = asyncio.run(us_per_token(urls[name], kind, options.streams))
                if turn:
                    found[kind, name].append(spent)
    for (kind, name), spent in found.items():
        print(
            f"{kind}, {name}: {statistics.median(spent):.2f} us a token ({', '.join(f'{one:.2f}' for one in spent)})"
        )


if __name__ == "__main__":
    main()
