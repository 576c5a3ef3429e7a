// What a user of the AI SDK does. Prints what it saw as JSON; run by test_ai_sdk.py.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const given = JSON.parse(process.argv[2]);
const connect = (url, apiKey, model = given.model) =>
  createOpenAICompatible({
    name: "mantler",
    baseURL: `${url}/v1`,
    apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
  })(model);
const asked = {
  model: connect(given.url, given.key),
  prompt: "What is the capital of France? Answer in one word.",
  temperature: 0,
  maxOutputTokens: 40,
  maxRetries: 0,
};
const seen = {};

const answer = await generateText(asked);
seen.chat = answer.finishReason;
const stream = streamText(asked);
let text = "";
for await (const part of stream.textStream) text += part;
seen.stream_is_the_chat = text === answer.text;
seen.stream_usage = (await stream.usage).totalTokens === answer.usage.totalTokens;

// The answers of the city are short whatever the model says.
const city = z.object({ size: z.enum(["small", "large"]), coastal: z.boolean() });
const output = Output.object({ schema: city });
const made = (await generateText({ ...asked, output })).output;
seen.object = city.safeParse(made).success;
seen.stream_object = JSON.stringify(await streamText({ ...asked, output }).output) === JSON.stringify(made);

let called = null;
const weather = tool({
  inputSchema: z.object({ city: z.enum(["Paris", "Rome"]) }),
  execute: ({ city }) => (called = city),
});
const forced = { ...asked, tools: { weather }, toolChoice: "required", stopWhen: stepCountIs(1) };
const stepped = await generateText(forced);
seen.tools = stepped.toolCalls.map((call) => [call.toolName, call.input.city === called]);
seen.tool_results = stepped.toolResults.map((result) => result.output === called);
const streamed = streamText(forced);
seen.stream_tools = (await streamed.toolCalls).map((call) => call.input.city === stepped.toolCalls[0].input.city);
seen.finish = [stepped.finishReason, await streamed.finishReason];

// The provider sends what it does not know as it is.
const endless = { mantler: { ignore_eos: true } };
const controller = new AbortController();
const cut = streamText({ ...asked, maxOutputTokens: 4000, providerOptions: endless, abortSignal: controller.signal });
seen.abort = [];
for await (const part of cut.fullStream) {
  if (part.type === "text-delta") controller.abort();
  if (part.type === "abort" || part.type === "finish") seen.abort.push(part.type);
}
seen.after_abort = (await generateText(asked)).text === text;

const error = (settings) =>
  generateText({ ...asked, ...settings }).then(
    () => ["no error"],
    ({ name, statusCode, isRetryable, data }) => [name, statusCode, isRetryable, data?.error.param, data?.error.code],
  );
seen["400"] = await error({ temperature: 7 });
seen["401"] = await error({ model: connect(given.url, "mk_live_nosuchkeynosuchkeynosuchkey00") });
seen["404"] = await error({ model: connect(given.url, given.key, "no:such") });
const slow = connect(given.url, given.slow_key);
await generateText({ ...asked, model: slow, maxOutputTokens: 1 });
seen["429"] = await error({ model: slow });
console.log(JSON.stringify(seen));
