// Vercel's AI SDK: its providers for chat completions (two), responses and Anthropic's messages.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool as toolOf } from "ai";
import { z } from "zod";
import { KEY, MODEL, V1, equal, holds, isFact, known, step, tool } from "./steps.mjs";

const openai = createOpenAI({ baseURL: V1, apiKey: KEY });
const compatible = createOpenAICompatible({ name: "local", baseURL: V1, apiKey: KEY, supportsStructuredOutputs: true });
const anthropic = createAnthropic({ baseURL: V1, apiKey: KEY });
const fact = z.object({ country: z.enum(["Germany", "Kenya"]), days: z.literal([1, 2, 3]) });
const tools = {
  get_weather: toolOf({
    description: tool.description,
    inputSchema: z.object({ city: z.string(), days: z.number().int() }),
    execute: async (call) => (equal(call, known.call), known.weather),
  }),
};

async function heard(stream) {
  let [text, thoughts] = ["", ""];
  for await (const part of stream.fullStream) {
    if (part.type === "text-delta") text += part.text;
    if (part.type === "reasoning-delta") thoughts += part.text;
    if (part.type === "error") throw part.error;
  }
  return [text, thoughts.trim()];
}

// What a provider shows of the reasoning: OpenAI's for chat completions shows none.
const providers = [
  { endpoint: "chat", name: "openai.chat", model: openai.chat(MODEL), thoughts: "" },
  { endpoint: "chat", name: "openai-compatible", model: compatible(MODEL), thoughts: known.thoughts },
  { endpoint: "responses", name: "openai", model: openai(MODEL), thoughts: known.thoughts },
  {
    endpoint: "responses",
    name: "openai, store false",
    model: openai(MODEL),
    thoughts: known.thoughts,
    providerOptions: { openai: { store: false } },
  },
  {
    endpoint: "messages",
    name: "anthropic",
    model: anthropic(MODEL),
    thoughts: known.thoughts,
    providerOptions: { anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } } },
    objectOptions: {},
  },
];

// With Anthropic's provider an object is a call that is forced, which it does without thinking only.
for (const { endpoint, name, model, thoughts, providerOptions, ...rest } of providers) {
  const common = { model, providerOptions, maxRetries: 0, maxOutputTokens: 2000 };
  const objects = { ...common, providerOptions: rest.objectOptions ?? providerOptions };
  await step(endpoint, `${name}: generateText`, async () => {
    const result = await generateText({ ...common, prompt: known.question });
    equal([result.text, (result.reasoningText ?? "").trim()], [known.answer, thoughts]);
  });
  await step(endpoint, `${name}: streamText`, async () => {
    equal(await heard(streamText({ ...common, prompt: known.question })), [known.answer, thoughts]);
  });
  await step(endpoint, `${name}: tools`, async () => {
    const result = await generateText({ ...common, prompt: known.weather_question, tools, stopWhen: stepCountIs(3) });
    equal([result.text, result.steps.length], [known.weather_answer, 2]);
  });
  await step(endpoint, `${name}: tools, streamed`, async () => {
    const stream = streamText({ ...common, prompt: known.weather_question, tools, stopWhen: stepCountIs(3) });
    equal((await heard(stream))[0], known.weather_answer);
  });
  await step(endpoint, `${name}: two turns`, async () => {
    const question = (content) => ({ role: "user", content });
    const first = await generateText({ ...common, prompt: known.question });
    const messages = [question(known.question), ...first.response.messages, question(known.next_question)];
    equal((await generateText({ ...common, messages })).text, known.next_answer);
  });
  await step(endpoint, `${name}: generateObject`, async () => {
    holds(isFact((await generateObject({ ...objects, prompt: known.question, schema: fact })).object));
  });
  await step(endpoint, `${name}: streamObject`, async () => {
    const stream = streamObject({ ...objects, prompt: known.question, schema: fact });
    let last;
    for await (const part of stream.partialObjectStream) last = part;
    equal(await stream.object, last);
    holds(isFact(last));
  });
}
