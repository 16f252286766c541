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

const text = { model: "tiny", prompt: "San Francisco is a", max_tokens: 7, temperature: 0 };
const completion = await client.completions.create({ ...text, n: 2, logprobs: 2 });
found.completion = completion.usage.completion_tokens;
found.completions = completion.choices.map((choice) => choice.text);
found.completionTokens = completion.choices[0].logprobs.tokens.join("");
const pieces = await client.completions.create({ ...text, stream: true, stream_options: { include_usage: true } });
found.streamedCompletion = "";
for await (const chunk of pieces) {
  found.streamedCompletion += chunk.choices[0]?.text ?? "";
  if (chunk.usage) found.streamedCompletionUsage = chunk.usage.completion_tokens;
}

const stopped = await client.chat.completions.create({ ...plain, stop: [found.streamed.slice(1, 2)] });
found.stopped = stopped.choices[0].message.content;

const asked = {
  ...plain,
  max_tokens: 60,
  messages: [{ role: "user", content: "What is the capital of France? Answer as JSON." }],
  tools: [{ type: "function", function: { name: "capital_of", parameters: { type: "object", properties: { country: { type: "string" } } } } }],
};
const calling = await client.chat.completions.create(asked);
const called = calling.choices[0];
found.toolFinish = called.finish_reason;
const call = called.message.tool_calls[0].function;
found.tool = { name: call.name, country: JSON.parse(call.arguments).country };
const runner = await client.chat.completions.stream(asked).finalMessage();
const streamedCall = runner.tool_calls[0].function;
found.streamedTool = { name: streamedCall.name, country: JSON.parse(streamedCall.arguments).country };
const result = { role: "tool", tool_call_id: called.message.tool_calls[0].id, content: "Paris" };
const after = await client.chat.completions.create({ ...asked, messages: [...asked.messages, called.message, result] });
found.toldOfResult = after.usage.prompt_tokens - calling.usage.prompt_tokens;
const untold = (await client.chat.completions.create({ ...asked, tool_choice: "none" })).choices[0];
found.untold = { finish: untold.finish_reason, calls: untold.message.tool_calls ?? [], text: untold.message.content };

async function failure(call) {
  try {
    await call();
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code };
  }
  return null;
}

found.unknownModel = await failure(() => client.chat.completions.create({ ...plain, model: "other" }));
found.forcedTool = await failure(() => client.chat.completions.create({ ...asked, tool_choice: "required" }));
found.badValue = await failure(() => client.chat.completions.create({ ...plain, temperature: -1 }));
const stranger = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "wrong", maxRetries: 0 });
found.badKey = await failure(() => stranger.models.list());

const cut = await client.chat.completions.create({ ...plain, max_tokens: 100, ignore_eos: true, stream: true });
for await (const chunk of cut) {
  if (chunk.choices[0]?.delta.content) break;
}
found.afterBreak = (await client.chat.completions.create(plain)).choices[0].message.content;

console.log(JSON.stringify(found));
