// A client of Slipstream in JavaScript: a DEALER socket and MessagePack; docs/protocol.md is what it speaks.
//
//   npm ci && node client.mjs ENDPOINT PROMPT [MAX_TOKENS]

import { decode, encode } from "@msgpack/msgpack";
import { Context, Dealer } from "zeromq";

const HELLO = { t: "hello", protocol: [1, 0], client: "javascript" };
const SILENCE_MS = 3000; // a service says something at least once a second while a request is open
const MAX_CONNECTIONS = 5;

export class ServiceError extends Error {
  constructor(code, message, retryAfterS = undefined) {
    super(message);
    this.code = code; // invalid_request, overloaded, deadline_exceeded, unavailable, protocol, internal
    this.retryAfterS = retryAfterS;
  }
}

/** Yields the deltas of one answer. After a lost connection the request is sent again with what has come. */
export async function* generate(endpoint, prompt, params = {}) {
  const request = { t: "generate", id: "javascript-1", prompt, params, received: [] };
  const context = new Context({ blocky: false });
  for (let connection = 0; connection < MAX_CONNECTIONS; connection++) {
    const socket = new Dealer({ context, linger: 0, receiveTimeout: SILENCE_MS });
    try {
      socket.connect(endpoint);
      await socket.send(encode(HELLO));
      await socket.send(encode(request));
      for (;;) {
        const message = await receive(socket);
        if (message === undefined) break; // silence: begin again on a new connection
        for (const delta of ours(message, request.id)) {
          request.received.push(...(delta.token_ids ?? []));
          yield delta;
          if (delta.finish_reason !== undefined) return;
        }
      }
    } finally {
      socket.close(); // the service ends what is still open on it
    }
  }
  throw new ServiceError("unavailable", `${endpoint} does not answer`);
}

/** The next message, or undefined after SILENCE_MS without one. */
async function receive(socket) {
  try {
    const [frame] = await socket.receive();
    return decode(frame);
  } catch (error) {
    if (error.code === "EAGAIN") return undefined;
    throw error;
  }
}

/** What a message has for this request; throws the error that ends it. Unknown messages have nothing. */
function ours(message, id) {
  if (message.t === "error" && (message.id === undefined || message.id === id)) {
    throw new ServiceError(message.code, message.message, message.retry_after_s);
  }
  return message.t === "deltas" ? message.items.filter((delta) => delta.id === id) : [];
}

if (import.meta.url === `file://${process.argv[1]}`) {
  const [endpoint, prompt, maxTokens = "64"] = process.argv.slice(2);
  try {
    const params = { max_tokens: Number(maxTokens), temperature: 0, seed: 7 };
    for await (const delta of generate(endpoint, prompt, params)) {
      process.stdout.write(delta.text ?? "");
    }
  } catch (error) {
    console.error(`\n${error.code}: ${error.message}`);
    process.exitCode = 1;
  }
}
