// Programs of JavaScript, as their users write them; prints what each made of what it was told.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [program, url, model] = process.argv.slice(2);
const baseURL = `${url}/v1`;
const apiKey = "none";
const City = z.object({ city: z.string() });
const Report = z.object({ sky: z.string() });
const prompt = "Weather in Rome?";
const messages = [{ role: "user", content: prompt }];

async function openai() {
  const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
  const weather = zodFunction({ name: "weather", parameters: City, function: ({ city }) => `Sunny in ${city}.` });
  const runner = client.chat.completions.runTools({ model, messages, tools: [weather] });
  const told = await runner.finalContent();
  let streamed = "";
  for await (const part of await client.chat.completions.create({ model, messages, stream: true })) {
    streamed += part.choices[0]?.delta?.content ?? "";
  }
  const response_format = zodResponseFormat(Report, "report");
  const parsed = await client.chat.completions.parse({ model, messages, response_format });
  return { told, streamed, structured: parsed.choices[0].message.parsed };
}

async function sdk(chosen) {
  const weather = tool({
    description: "The weather of a city",
    inputSchema: City,
    execute: async ({ city }) => `Sunny in ${city}.`,
  });
  const { text } = await generateText({ model: chosen, prompt, tools: { weather }, stopWhen: stepCountIs(3) });
  let streamed = "";
  for await (const part of streamText({ model: chosen, prompt }).textStream) streamed += part;
  const { object } = await generateObject({ model: chosen, prompt, schema: Report });
  return { told: text, streamed, structured: object };
}

const programs = {
  openai,
  compatible: () =>
    sdk(createOpenAICompatible({ name: "here", baseURL, apiKey, supportsStructuredOutputs: true })(model)),
  responses: () => sdk(createOpenAI({ baseURL, apiKey })(model)),
};

console.log(JSON.stringify(await programs[program]()));
