// What the npm client makes of a live server, as one JSON object on standard output.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: process.argv[3], maxRetries: 0 });
const messages = [{ role: "user", content: "What is 2 + 3?" }];
const plain = { model: "tiny", messages, temperature: 0, max_tokens: 16 };
const found = {};

found.models = (await client.models.list()).data.map((model) => model.id);

const chat = await client.chat.completions.create({ ...plain, n: 2, logprobs: true, top_logprobs: 2 });
found.texts = chat.choices.map((choice) => choice.message.content);
found.finish = chat.choices[0].finish_reason;
found.logprobs = chat.choices[0].logprobs.content.length;
found.usage = chat.usage;

found.streamed = "";
const stream = await client.chat.completions.create({ ...plain, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  found.streamed += chunk.choices[0]?.delta.content ?? "";
  if (chunk.usage) found.streamedUsage = chunk.usage;
}

const completion = await client.completions.create({ model: "tiny", prompt: "San Francisco is a", max_tokens: 7, temperature: 0 });
found.completion = completion.usage.completion_tokens;

const stopped = await client.chat.completions.create({ ...plain, stop: [found.streamed.slice(1, 2)] });
found.stopped = stopped.choices[0].message.content;

const asked = {
  ...plain,
  max_tokens: 60,
  messages: [{ role: "user", content: "What is the capital of France? Answer as JSON." }],
  tools: [{ type: "function", function: { name: "capital_of", parameters: { type: "object", properties: { country: { type: "string" } } } } }],
};
const called = (await client.chat.completions.create(asked)).choices[0];
found.toolFinish = called.finish_reason;
const call = called.message.tool_calls[0].function;
found.tool = { name: call.name, country: JSON.parse(call.arguments).country };
const runner = await client.chat.completions.stream(asked).finalMessage();
const streamedCall = runner.tool_calls[0].function;
found.streamedTool = { name: streamedCall.name, country: JSON.parse(streamedCall.arguments).country };

async function failure(call) {
  try {
    await call();
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code };
  }
  return null;
}

found.unknownModel = await failure(() => client.chat.completions.create({ ...plain, model: "other" }));
found.badValue = await failure(() => client.chat.completions.create({ ...plain, temperature: -1 }));
const stranger = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "wrong", maxRetries: 0 });
found.badKey = await failure(() => stranger.models.list());

const cut = await client.chat.completions.create({ ...plain, max_tokens: 100, ignore_eos: true, stream: true });
for await (const chunk of cut) {
  if (chunk.choices[0]?.delta.content) break;
}
found.afterBreak = (await client.chat.completions.create(plain)).choices[0].message.content;

console.log(JSON.stringify(found));
