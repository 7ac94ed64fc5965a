// A session's steps, as ../steps.py has them: node NAME.mjs URL. What became of each step is a line of JSON.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

export const URL = process.argv[2].replace(/\/$/, "");
export const V1 = `${URL}/v1`;
export const MODEL = "miniature";
export const KEY = "none";
export const known = JSON.parse(readFileSync(new globalThis.URL("questions.json", import.meta.url), "utf8"));
export const equal = assert.deepEqual;

export async function step(endpoint, name, run) {
  let error = "";
  try {
    await run();
  } catch (thrown) {
    error = `${thrown?.stack ?? thrown} ${thrown?.responseBody ?? ""}`;
  }
  console.log(JSON.stringify({ endpoint, step: name, error }));
}

export function holds(value, said = "it does not hold") {
  if (!value) throw new Error(said);
}

export function isFact(value) {
  const fact = typeof value === "string" ? JSON.parse(value) : value;
  const { country, days } = known.fact.properties;
  return country.enum.includes(fact.country) && days.minimum <= fact.days && fact.days <= days.maximum;
}

export const rawPrompt = `<|im_start|>user\n${known.question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n`;
export const tool = { name: "get_weather", description: "The weather of a city", parameters: known.parameters };
