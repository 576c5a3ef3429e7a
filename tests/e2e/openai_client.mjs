// What a user of the openai Node package does. Prints what it saw as JSON; run by test_openai_node.py.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, given_] = process.argv.slice(2);
const given = JSON.parse(given_);
const require = createRequire(pathToFileURL(`${folder}/package.json`));
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")));

const connect = (url, apiKey) => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const client = connect(given.url, given.key);
const asked = {
  model: given.model,
  messages: [{ role: "user", content: "What is the capital of France? Answer in one word." }],
  temperature: 0,
  max_tokens: 40,
};

const error = async (client, body) => {
  try {
    await client.chat.completions.create(body);
  } catch (error) {
    return [error.constructor.name, error.status, error.param ?? null, error.code];
  }
  return ["no error"];
};

const seen = {};
seen.version = JSON.parse(readFileSync(`${folder}/node_modules/openai/package.json`)).version;
seen.models = (await client.models.list()).data.map((model) => model.id);
const answer = await client.chat.completions.create(asked);
seen.chat = answer.choices[0].finish_reason;
let text = "";
let usage = null;
const chunks = await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
for await (const chunk of chunks) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
seen.stream_is_the_chat = text === answer.choices[0].message.content;
seen.stream_usage = usage.total_tokens === answer.usage.total_tokens;
const runner = client.chat.completions.stream(asked);
seen.stream_helper = (await runner.finalContent()) === text;

seen["400"] = await error(client, { ...asked, temperature: 7 });
seen["401"] = await error(connect(given.url, "mk_live_nosuchkeynosuchkeynosuchkey00"), asked);
seen["403"] = await error(connect(given.url, given.other_model_key), asked);
seen["404"] = await error(client, { ...asked, model: "no:such" });
const slow = connect(given.url, given.slow_key);
await slow.chat.completions.create({ ...asked, max_tokens: 1 });
seen["429"] = await error(slow, asked);
seen["503"] = await error(connect(given.dead_url, given.key), asked);
console.log(JSON.stringify(seen));
