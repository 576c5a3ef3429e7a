// What a user of the openai Node package does. Prints what it saw as JSON; run by test_openai_node.py.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const given = JSON.parse(process.argv[2]);
const connect = (url, apiKey) => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const client = connect(given.url, given.key);
const completions = client.chat.completions;
const asked = {
  model: given.model,
  messages: [{ role: "user", content: "What is the capital of France? Answer in one word." }],
  temperature: 0,
  max_tokens: 40,
};
const seen = {};

const answer = await completions.create(asked);
const text = answer.choices[0].message.content;

// The same answer in all the ways in which the SDK gives it.
const answers = async () => {
  seen.models = (await client.models.list()).data.map((model) => model.id);
  seen.chat = answer.choices[0].finish_reason;
  let joined = "";
  let usage = null;
  for await (const chunk of await completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
    joined += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  seen.stream_is_the_chat = joined === text;
  seen.stream_usage = usage.total_tokens === answer.usage.total_tokens;
  seen.stream_helper = (await completions.stream(asked).finalContent()) === text;
  const { data, response, request_id } = await completions.create(asked).withResponse();
  seen.raw = [response.status, request_id === response.headers.get("x-request-id"), data.choices[0].message.content === text];
  const cut = await completions.create({ ...asked, max_tokens: 4000, ignore_eos: true, stream: true });
  for await (const chunk of cut) {
    seen.abort = chunk.choices[0].delta.role;
    cut.controller.abort();
  }
  seen.after_abort = (await completions.create(asked)).choices[0].message.content === text;
};

// The answers of the city are short whatever the model says.
const city = z.object({ size: z.enum(["small", "large"]), coastal: z.boolean() });

// The end of a conversation that began elsewhere, with a call.
const weather = { id: "call_1", type: "function", function: { name: "weather", arguments: '{"city": "Paris"}' } };
const callAndResult = [
  { role: "assistant", tool_calls: [weather] },
  { role: "tool", tool_call_id: "call_1", content: "Sunny." },
];

const options = async () => {
  const history = await completions.create({ ...asked, messages: [...asked.messages, ...callAndResult] });
  seen.call_in_history = history.choices[0].message.content.length > 0;
  const response_format = zodResponseFormat(city, "city");
  const { parsed } = (await completions.parse({ ...asked, response_format })).choices[0].message;
  seen.parse = city.safeParse(parsed).success;
  const streamed = await completions.stream({ ...asked, response_format }).finalChatCompletion();
  seen.stream_parse = JSON.stringify(streamed.choices[0].message.parsed) === JSON.stringify(parsed);
  const drawing = { ...asked, temperature: 1, seed: 7, max_tokens: 6, n: 2, logprobs: true, top_logprobs: 2 };
  const drawn = (await completions.create(drawing)).choices;
  const drawnAgain = (await completions.stream(drawing).finalChatCompletion()).choices;
  seen.n = drawn.map((choice) => choice.index);
  seen.logprobs = drawn.map(fits);
  seen.stream_n = drawn.every((choice, index) => choice.message.content === drawnAgain[index].message.content);
  seen.stream_logprobs = drawnAgain.map(fits);
};

const parameters = {
  type: "object",
  properties: { city: { enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};

const tools = async () => {
  const offered = [{ type: "function", function: { name: "weather", parameters } }];
  const forced = { ...asked, tools: offered, tool_choice: "required", parallel_tool_calls: false };
  const choice = (await completions.create(forced)).choices[0];
  const [call] = choice.message.tool_calls;
  seen.tools = [choice.finish_reason, choice.message.content, call.function.name];
  const streamed = (await completions.stream(forced).finalChatCompletion()).choices[0].message.tool_calls;
  seen.stream_tools = streamed.map((each) => each.function.arguments === call.function.arguments);
  // Runs the function and stops, since the call was asked for by name.
  let given = null;
  const weather = { name: "weather", parameters, parse: JSON.parse, function: ({ city }) => (given = city) };
  const tool_choice = { type: "function", function: { name: "weather" } };
  await completions.runTools({ ...asked, tools: [{ type: "function", function: weather }], tool_choice }).done();
  seen.run_tools = parameters.properties.city.enum.includes(given);
};

// Whether the log probabilities of a choice are those of its text.
const fits = ({ logprobs, message }) => {
  const spelled = Buffer.from(logprobs.content.flatMap((entry) => entry.bytes)).toString();
  const sound = logprobs.content.every((entry) => entry.logprob <= 0 && entry.top_logprobs.length === 2);
  return sound && spelled === message.content;
};

const error = async (client, body) => {
  try {
    await client.chat.completions.create(body);
  } catch (error) {
    return [error.constructor.name, error.status, error.param ?? null, error.code];
  }
  return ["no error"];
};

const errors = async () => {
  const json_schema = { name: "city", schema: { type: "strin" } };
  seen["400"] = await error(client, { ...asked, temperature: 7 });
  seen["400 schema"] = await error(client, { ...asked, response_format: { type: "json_schema", json_schema } });
  seen["400 stream"] = await error(client, { ...asked, stream: true, logprobs: true, top_logprobs: 21 });
  seen["401"] = await error(connect(given.url, "mk_live_nosuchkeynosuchkeynosuchkey00"), asked);
  seen["403"] = await error(connect(given.url, given.other_model_key), asked);
  seen["404"] = await error(client, { ...asked, model: "no:such" });
  const slow = connect(given.url, given.slow_key);
  await slow.chat.completions.create({ ...asked, max_tokens: 1 });
  seen["429"] = await error(slow, asked);
  const wait = await slow.chat.completions.create(asked).catch((error) => Number(error.headers.get("retry-after")));
  seen["429 retry-after"] = 1 <= wait && wait <= 60;
  seen["503"] = await error(connect(given.dead_url, given.key), asked);
};

await answers();
await options();
await tools();
await errors();
console.log(JSON.stringify(seen));
