"""A program that starts a service of its own, asks it, and stops it, by the command line that any language can use.

In Python ``slipstream.Sidecar`` does the same in one line; this shows what is behind it.
Run it with ``python examples/python/host.py [options of slipstream serve]``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from slipstream import Client, SamplingParams


def start(options: list[str]) -> tuple[subprocess.Popen[bytes], dict[str, object]]:
    """Start a service; returns its process and what it says when it is ready."""
    read_end, write_end = os.pipe()
    service = subprocess.Popen(
        ["slipstream", "serve", f"--ready-fd={write_end}", "--exit-with-parent", *options],
        pass_fds=(write_end,),
    )
    os.close(write_end)  # so that the pipe ends with the service if that cannot start
    with open(read_end, encoding="utf-8") as pipe:
        ready = json.loads(pipe.readline() or '{"message": "it ended without a word"}')
    if "endpoint" not in ready:
        sys.exit(f"the service could not start: {ready['message']}")
    return service, ready


def main() -> None:
    service, ready = start(sys.argv[1:])
    try:
        with Client(str(ready["endpoint"])) as client:
            for delta in client.stream("Once upon a time", SamplingParams(max_tokens=32, temperature=0)):
                print(delta.text, end="", flush=True)
        print()
    finally:
        service.send_signal(signal.SIGTERM)  # it finishes what is under way, then ends
        print(f"the service ended with exit code {service.wait()}")


if __name__ == "__main__":
    main()
