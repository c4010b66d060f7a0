"""A whole client of Slipstream with nothing but pyzmq and msgpack; docs/protocol.md is what it speaks.

python raw_client.py ENDPOINT PROMPT [MAX_TOKENS]
"""

import sys

import msgpack
import zmq

HELLO = {"t": "hello", "protocol": [1, 0], "client": "raw python"}
SILENCE_MS = 3000  # a service says something at least once a second while a request is open


def generate(endpoint, prompt, **params):
    """Yield the deltas of one answer. After a lost connection the request is sent again with what has come."""
    request = {"t": "generate", "id": "raw-1", "prompt": prompt, "params": params, "received": []}
    with zmq.Context() as context:
        for _ in range(5):
            with context.socket(zmq.DEALER) as socket:
                socket.linger = 0
                socket.connect(endpoint)
                for message in HELLO, request:
                    socket.send(msgpack.packb(message))  # type: ignore[arg-type]
                while socket.poll(SILENCE_MS):
                    message = msgpack.unpackb(socket.recv())
                    if message["t"] == "error" and message.get("id") in (None, request["id"]):
                        raise SystemExit(f"\n{message['code']}: {message['message']}")
                    for delta in message["items"] if message["t"] == "deltas" else ():
                        if delta["id"] == request["id"]:
                            request["received"] += delta.get("token_ids", [])
                            yield delta
                            if "finish_reason" in delta:
                                return
        raise SystemExit(f"\nunavailable: {endpoint} does not answer")


for delta in generate(*sys.argv[1:3], max_tokens=int((sys.argv[3:] or [64])[0]), temperature=0.0, seed=7):
    print(delta.get("text", ""), end="", flush=True)
