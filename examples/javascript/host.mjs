// A program that starts a service of its own, asks it, and stops it.
//
//   npm ci && node host.mjs [options of slipstream serve]

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

import { generate } from "./client.mjs";

/** Starts a service; returns its process and what it says when it is ready. */
async function start(options) {
  const service = spawn("slipstream", ["serve", "--ready-fd=3", "--exit-with-parent", ...options], {
    stdio: ["ignore", "inherit", "inherit", "pipe"], // the fourth is file descriptor 3
  });
  await once(service, "spawn");
  const [line] = await Promise.race([
    once(createInterface({ input: service.stdio[3] }), "line"),
    once(service, "exit").then(() => ['{"message": "it ended without a word"}']),
  ]);
  const ready = JSON.parse(line);
  if (ready.endpoint === undefined) throw new Error(`the service could not start: ${ready.message}`);
  return { service, ready };
}

const { service, ready } = await start(process.argv.slice(2));
try {
  const params = { max_tokens: 32, temperature: 0 };
  for await (const delta of generate(ready.endpoint, "Once upon a time", params)) {
    process.stdout.write(delta.text ?? "");
  }
  process.stdout.write("\n");
} finally {
  service.kill("SIGTERM"); // it finishes what is under way, then ends
  const [code] = await once(service, "exit");
  console.log(`the service ended with exit code ${code}`);
}
