// Anthropic's client: messages, tokens that are counted.
import Anthropic from "@anthropic-ai/sdk";
import { KEY, MODEL, URL, equal, holds, isFact, known, step, tool } from "./steps.mjs";

const client = new Anthropic({ baseURL: URL, apiKey: KEY, maxRetries: 0 });
const messages = [{ role: "user", content: known.question }];
const weather = [{ role: "user", content: known.weather_question }];
const tools = [{ name: tool.name, description: tool.description, input_schema: tool.parameters }];
const thinking = { type: "enabled", budget_tokens: 1024 };
const common = { model: MODEL, max_tokens: 2000 };

async function roundOfTools(fields, ask) {
  const first = await ask({ ...common, ...fields, messages: weather, tools });
  const call = first.content.at(-1);
  equal([first.stop_reason, call.name, call.input], ["tool_use", "get_weather", known.call]);
  const result = { type: "tool_result", tool_use_id: call.id, content: JSON.stringify(known.weather) };
  const history = [...weather, { role: "assistant", content: first.content }, { role: "user", content: [result] }];
  const second = await ask({ ...common, ...fields, messages: history, tools });
  equal(second.content.at(-1).text, known.weather_answer);
}

await step("messages", "whole", async () => {
  const message = await client.messages.create({ ...common, messages, system: "Be brief." });
  equal([message.content[0].text, message.stop_reason], [known.answer, "end_turn"]);
});
await step("messages", "events", async () => {
  const kinds = [];
  for await (const event of await client.messages.create({ ...common, messages, stream: true })) kinds.push(event.type);
  equal([kinds[0], kinds.at(-1)], ["message_start", "message_stop"]);
});
await step("messages", "its own stream", async () => {
  let text = "";
  const stream = client.messages.stream({ ...common, messages }).on("text", (delta) => (text += delta));
  equal([await stream.finalText(), text], [known.answer, known.answer]);
});
await step("messages", "thinking", async () => {
  const [thought, said] = (await client.messages.create({ ...common, messages, thinking })).content;
  equal([thought.thinking.trim(), said.text], [known.thoughts, known.answer]);
});
await step("messages", "thinking, streamed", async () => {
  let thoughts = "";
  const stream = client.messages.stream({ ...common, messages, thinking }).on("thinking", (delta) => (thoughts += delta));
  const [thought] = (await stream.finalMessage()).content;
  equal([thoughts, thought.thinking.trim()], [thought.thinking, known.thoughts]);
  holds(thought.signature);
});
await step("messages", "round of tools", () => roundOfTools({}, (body) => client.messages.create(body)));
await step("messages", "round of tools, with thinking, streamed", () =>
  roundOfTools({ thinking }, (body) => client.messages.stream(body).finalMessage()),
);
await step("messages", "a tool is forced", async () => {
  const picked = [{ name: "pick", description: "Pick", input_schema: known.fact, strict: true }];
  const fields = { tools: picked, tool_choice: { type: "tool", name: "pick" } };
  holds(isFact((await client.messages.create({ ...common, ...fields, messages })).content.at(-1).input));
});
await step("messages", "schema", async () => {
  const output_config = { format: { type: "json_schema", schema: known.fact } };
  holds(isFact((await client.messages.create({ ...common, messages, output_config })).content.at(-1).text));
});
await step("messages", "two turns", async () => {
  const first = await client.messages.create({ ...common, messages, thinking });
  const next = { role: "user", content: known.next_question };
  const history = [...messages, { role: "assistant", content: first.content }, next];
  const second = await client.messages.create({ ...common, messages: history, thinking });
  equal(second.content.at(-1).text, known.next_answer);
});
await step("messages/count_tokens", "tokens are counted", async () => {
  const counted = await client.messages.countTokens({ model: MODEL, messages, tools });
  const { usage } = await client.messages.create({ ...common, messages, tools });
  equal(counted.input_tokens, usage.input_tokens + usage.cache_read_input_tokens);
});
