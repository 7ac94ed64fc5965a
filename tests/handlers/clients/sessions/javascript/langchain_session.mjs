// LangChain's models: ChatOpenAI by chat completions and by responses, ChatAnthropic.
import { ChatAnthropic } from "@langchain/anthropic";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";
import { KEY, MODEL, URL, V1, equal, holds, isFact, known, step, tool } from "./steps.mjs";

const openai = { model: MODEL, apiKey: KEY, configuration: { baseURL: V1 }, maxRetries: 0 };
const fact = z.object({ country: z.enum(["Germany", "Kenya"]), days: z.literal([1, 2, 3]) });
const models = {
  chat: () => new ChatOpenAI({ ...openai, useResponsesApi: false }),
  responses: () => new ChatOpenAI({ ...openai, useResponsesApi: true }),
  messages: () => new ChatAnthropic({ model: MODEL, apiKey: KEY, anthropicApiUrl: URL, maxRetries: 0, maxTokens: 500 }),
};
const question = new HumanMessage(known.weather_question);

async function finish(bound, call) {
  equal(call.tool_calls[0].args, known.call);
  const result = new ToolMessage({ content: JSON.stringify(known.weather), tool_call_id: call.tool_calls[0].id });
  equal((await bound.invoke([question, call, result])).text, known.weather_answer);
}

for (const [endpoint, make] of Object.entries(models)) {
  const tools = [{ type: "function", function: tool }];
  await step(endpoint, `${endpoint}: invoke`, async () => {
    equal((await make().invoke(known.question)).text, known.answer);
  });
  await step(endpoint, `${endpoint}: stream`, async () => {
    let text = "";
    for await (const chunk of await make().stream(known.question)) text += chunk.text;
    equal(text, known.answer);
  });
  await step(endpoint, `${endpoint}: round of tools`, async () => {
    const bound = make().bindTools(tools);
    await finish(bound, await bound.invoke([question]));
  });
  await step(endpoint, `${endpoint}: round of tools, streamed`, async () => {
    const bound = make().bindTools(tools);
    let call = null;
    for await (const chunk of await bound.stream([question])) call = call === null ? chunk : call.concat(chunk);
    await finish(bound, call);
  });
  await step(endpoint, `${endpoint}: structured`, async () => {
    // Anthropic's client leaves enumerations out of the schemas of forms, not out of those of tools.
    const method = endpoint === "messages" ? "functionCalling" : "jsonSchema";
    const structured = make().withStructuredOutput(fact, { name: "fact", method });
    holds(isFact(await structured.invoke(known.question)));
  });
  await step(endpoint, `${endpoint}: two turns`, async () => {
    const first = await make().invoke(known.question);
    const history = [new HumanMessage(known.question), first, new HumanMessage(known.next_question)];
    equal((await make().invoke(history)).text, known.next_answer);
  });
}

await step("responses", "reasoning is shown", async () => {
  const message = await models.responses().invoke(known.question);
  equal(message.additional_kwargs.reasoning.summary[0].text, known.thoughts);
});
