// OpenAI's client: chat completions, completions, responses.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { KEY, MODEL, V1, equal, holds, isFact, known, rawPrompt, step, tool } from "./steps.mjs";

const client = new OpenAI({ baseURL: V1, apiKey: KEY, maxRetries: 0 });
const messages = [{ role: "user", content: known.question }];
const weather = [{ role: "user", content: known.weather_question }];
const tools = [{ type: "function", function: tool }];
const responseTools = [{ type: "function", ...tool, strict: true }];
const fact = z.object({ country: z.enum(["Germany", "Kenya"]), days: z.number().int().min(1).max(7) });

await step("chat", "whole", async () => {
  const { message, finish_reason } = (await client.chat.completions.create({ model: MODEL, messages })).choices[0];
  equal([message.content, message.reasoning_content, finish_reason], [known.answer, known.thoughts, "stop"]);
});
await step("chat", "streamed", async () => {
  let text = "";
  let usage = null;
  const fields = { model: MODEL, messages, stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create(fields)) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  equal(text, known.answer);
  holds(usage.completion_tokens > 0);
});
await step("chat", "its own stream", async () => {
  const stream = client.chat.completions.stream({ model: MODEL, messages });
  equal(await stream.finalContent(), known.answer);
});
await step("chat", "round of tools", async () => {
  const first = await client.chat.completions.create({ model: MODEL, messages: weather, tools });
  const { message } = first.choices[0];
  equal(JSON.parse(message.tool_calls[0].function.arguments), known.call);
  const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: JSON.stringify(known.weather) };
  const second = await client.chat.completions.create({ model: MODEL, messages: [...weather, message, result], tools });
  equal(second.choices[0].message.content, known.weather_answer);
});
const runnable = [
  {
    type: "function",
    function: { ...tool, parse: JSON.parse, function: (call) => (equal(call, known.call), JSON.stringify(known.weather)) },
  },
];
await step("chat", "tools that it runs", async () => {
  const runner = client.chat.completions.runTools({ model: MODEL, messages: weather, tools: runnable });
  equal(await runner.finalContent(), known.weather_answer);
});
await step("chat", "tools that it runs, streamed", async () => {
  const runner = client.chat.completions.runTools({ model: MODEL, messages: weather, tools: runnable, stream: true });
  equal(await runner.finalContent(), known.weather_answer);
});
await step("chat", "parse", async () => {
  const fields = { model: MODEL, messages, response_format: zodResponseFormat(fact, "fact") };
  holds(isFact((await client.chat.completions.parse(fields)).choices[0].message.parsed));
});
await step("chat", "two turns", async () => {
  const first = (await client.chat.completions.create({ model: MODEL, messages })).choices[0].message;
  const history = [...messages, first, { role: "user", content: known.next_question }];
  const second = await client.chat.completions.create({ model: MODEL, messages: history });
  equal(second.choices[0].message.content, known.next_answer);
});
await step("completions", "text", async () => {
  equal((await client.completions.create({ model: MODEL, prompt: rawPrompt })).choices[0].text, known.answer);
});
await step("completions", "text, streamed", async () => {
  let text = "";
  for await (const part of await client.completions.create({ model: MODEL, prompt: rawPrompt, stream: true })) {
    text += part.choices[0].text;
  }
  equal(text, known.answer);
});
await step("responses", "response", async () => {
  equal((await client.responses.create({ model: MODEL, input: known.question })).output_text, known.answer);
});
await step("responses", "response, streamed", async () => {
  let text = "";
  for await (const event of await client.responses.create({ model: MODEL, input: known.question, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  equal(text, known.answer);
});
await step("responses", "response, its own stream", async () => {
  const stream = client.responses.stream({ model: MODEL, input: known.question });
  const kinds = new Set();
  for await (const event of stream) kinds.add(event.type);
  equal((await stream.finalResponse()).output_text, known.answer);
  holds(kinds.has("response.reasoning_text.delta"));
});
await step("responses", "response, round of tools", async () => {
  const common = { model: MODEL, tools: responseTools, store: false };
  const first = await client.responses.stream({ ...common, input: weather }).finalResponse();
  const call = first.output.find((item) => item.type === "function_call");
  equal(JSON.parse(call.arguments), known.call);
  const result = { type: "function_call_output", call_id: call.call_id, output: JSON.stringify(known.weather) };
  const second = await client.responses.create({ ...common, input: [...weather, ...first.output, result] });
  equal(second.output_text, known.weather_answer);
});
await step("responses", "response, parse", async () => {
  const text = { format: zodTextFormat(fact, "fact") };
  holds(isFact((await client.responses.parse({ model: MODEL, input: known.question, text })).output_parsed));
});
await step("responses", "nothing is stored", async () => {
  equal(await client.responses.retrieve("resp_1").then(() => 200, (error) => error.status), 404);
});
await step("responses/input_tokens", "input tokens are counted", async () => {
  const counted = await client.responses.inputTokens.count({ model: MODEL, input: known.question });
  const used = (await client.responses.create({ model: MODEL, input: known.question })).usage;
  equal(counted.input_tokens, used.input_tokens);
});
await step("models", "models", async () => {
  const found = [];
  for await (const model of client.models.list()) found.push(model.id);
  holds(found.length > 0);
});
