// Sessions of JavaScript's clients with /v1/responses of a scripted server: node responses.mjs URL. It fails if a step does.
import OpenAI from "openai";
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";

const baseURL = process.argv[2] + "/v1";
const apiKey = "none";
const NAME = "Ujerumani it is.";
const AFTER = "It is sunny.";
const parameters = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer" } },
  required: ["city", "days"],
  additionalProperties: false,
};
const fact = z.object({ country: z.enum(["Germany", "Kenya"]), days: z.number().int() });
let passed = 0;
let failed = 0;

async function step(name, run) {
  try {
    await run();
    passed += 1;
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}: ${error.stack ?? error} ${error.responseBody ?? ""}`);
  }
}

function equal(found, expected) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(expected)];
  if (a !== b) throw new Error(`${a} is not ${b}`);
}

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const weather = { type: "function", name: "get_weather", description: "The weather", parameters, strict: false };

await step("openai: create", async () => {
  equal((await client.responses.create({ model: "m", input: "Germany?" })).output_text, NAME);
});
await step("openai: stream", async () => {
  let text = "";
  for await (const event of await client.responses.create({ model: "m", input: "Germany?", stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  equal(text, NAME);
});
await step("openai: its own stream", async () => {
  const stream = client.responses.stream({ model: "m", input: "Germany?" });
  const kinds = new Set();
  for await (const event of stream) kinds.add(event.type);
  equal((await stream.finalResponse()).output_text, NAME);
  equal(kinds.has("response.reasoning_text.delta"), true);
});
await step("openai: a round of tools", async () => {
  const first = await client.responses.stream({ model: "m", input: "Weather?", tools: [weather] }).finalResponse();
  const call = first.output.find((item) => item.type === "function_call");
  equal(JSON.parse(call.arguments), { city: "Oslo", days: 3 });
  const result = { type: "function_call_output", call_id: call.call_id, output: "sunny" };
  const input = [{ role: "user", content: "Weather?" }, ...first.output, result];
  equal((await client.responses.create({ model: "m", tools: [weather], store: false, input })).output_text, AFTER);
});
await step("openai: parse", async () => {
  const format = { type: "json_schema", name: "fact", strict: true, schema: z.toJSONSchema(fact) };
  const parsed = await client.responses.parse({ model: "m", input: "JSON please", text: { format } });
  equal(parsed.output_parsed, { country: "Kenya", days: 3 });
});
await step("openai: input tokens", async () => {
  equal((await client.responses.inputTokens.count({ model: "m", input: "Hi" })).input_tokens > 5, true);
});
await step("openai: nothing is stored", async () => {
  const status = await client.responses.retrieve("resp_1").then(() => 200, (error) => error.status);
  equal(status, 404);
});

const model = createOpenAI({ baseURL, apiKey })("m");
const tools = {
  get_weather: tool({ description: "The weather", inputSchema: z.object({ city: z.string(), days: z.number().int() }), execute: async () => "sunny" }),
};
for (const store of [undefined, false]) {
  const common = { model, providerOptions: store === undefined ? undefined : { openai: { store } }, maxRetries: 0 };
  const name = (text) => `ai, store ${store}: ${text}`;
  await step(name("generateText"), async () => {
    const result = await generateText({ ...common, prompt: "Germany?" });
    equal([result.text, result.reasoningText], [NAME, "He asks."]);
  });
  await step(name("streamText"), async () => {
    let text = "";
    let thoughts = "";
    for await (const part of streamText({ ...common, prompt: "Germany?" }).fullStream) {
      if (part.type === "text-delta") text += part.text;
      if (part.type === "reasoning-delta") thoughts += part.text;
      if (part.type === "error") throw part.error;
    }
    equal([text, thoughts], [NAME, "He asks."]);
  });
  await step(name("tools"), async () => {
    const result = await generateText({ ...common, prompt: "Weather?", tools, stopWhen: stepCountIs(3) });
    equal([result.text, result.steps.length], [AFTER, 2]);
  });
  await step(name("tools, streamed"), async () => {
    let text = "";
    for await (const part of streamText({ ...common, prompt: "Weather?", tools, stopWhen: stepCountIs(3) }).fullStream) {
      if (part.type === "text-delta") text += part.text;
      if (part.type === "error") throw part.error;
    }
    equal(text.endsWith(AFTER), true);
  });
  await step(name("two turns"), async () => {
    const first = await generateText({ ...common, prompt: "Germany?" });
    const question = (content) => ({ role: "user", content });
    const messages = [question("Germany?"), ...first.response.messages, question("And again?")];
    equal((await generateText({ ...common, messages })).text, NAME);
  });
  await step(name("generateObject"), async () => {
    const result = await generateObject({ ...common, prompt: "JSON please", schema: fact });
    equal(result.object, { country: "Kenya", days: 3 });
  });
}

const langchain = new ChatOpenAI({ model: "m", apiKey, useResponsesApi: true, configuration: { baseURL }, maxRetries: 0 });
await step("langchain: invoke", async () => {
  const message = await langchain.invoke("Germany?");
  equal(message.text, NAME);
  equal(message.additional_kwargs.reasoning.summary[0].text, "He asks.");
});
await step("langchain: stream", async () => {
  let text = "";
  for await (const chunk of await langchain.stream("Germany?")) text += chunk.text;
  equal(text, NAME);
});
await step("langchain: a round of tools", async () => {
  const bound = langchain.bindTools([{ type: "function", function: { name: "get_weather", description: "d", parameters } }]);
  const question = { role: "user", content: "Weather?" };
  const call = await bound.invoke([question]);
  equal(call.tool_calls[0].args, { city: "Oslo", days: 3 });
  const result = { role: "tool", content: "sunny", tool_call_id: call.tool_calls[0].id };
  equal((await bound.invoke([question, call, result])).text, AFTER);
});

console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
