// The box to try a prompt: a client of the same HTTP interface as any other.

// The key stays in this tab.
export const keep = (key) => sessionStorage.setItem("slipstream-key", key);

export function headers() {
  const key = sessionStorage.getItem("slipstream-key");
  return key ? { authorization: `Bearer ${key}` } : {};
}

export function begin(form, send, answer, told) {
  let under_way = null;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (under_way) {
      under_way.abort();
      return;
    }
    under_way = new AbortController();
    send.textContent = "Stop";
    answer.textContent = told.textContent = "";
    answer.className = "";
    try {
      await stream(new FormData(form), under_way.signal, answer, told);
    } catch (error) {
      if (error.name !== "AbortError") {
        answer.className = "failed";
        answer.textContent = error.message;
      }
    }
    under_way = null;
    send.textContent = "Send";
  });
}

async function stream(asked, signal, answer, told) {
  const prompt = asked.get("prompt"), plain = asked.has("plain");
  const body = plain ? { prompt } : { messages: [{ role: "user", content: prompt }] };
  const begun = performance.now();
  let first = null, tokens = 0;
  const response = await fetch(plain ? "v1/completions" : "v1/chat/completions", {
    method: "POST",
    signal,
    headers: { "content-type": "application/json", ...headers() },
    body: JSON.stringify({
      ...body, max_tokens: Number(asked.get("max_tokens")), stream: true, stream_options: { include_usage: true },
    }),
  });
  if (!response.ok) throw new Error(await complaint(response));
  for await (const event of events(response.body)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices?.[0], text = choice?.delta?.content ?? choice?.text ?? "";
    if (text) {
      first ??= performance.now();
      answer.append(text);
      answer.scrollTop = answer.scrollHeight;
    }
    if (event.usage) tokens = event.usage.completion_tokens;
  }
  const now = performance.now(), seconds = (now - (first ?? now)) / 1000;
  const speed = tokens > 1 && seconds > 0 ? `, then ${Math.round((tokens - 1) / seconds)} tokens per second` : "";
  told.textContent = `${tokens} tokens; the first after ${Math.round((first ?? now) - begun)} ms${speed}`;
}

async function complaint(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the service answered ${response.status}`;
  }
}

// The server-sent events of a body, as what is in them.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}
