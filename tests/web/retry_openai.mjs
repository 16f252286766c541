// As retry_openai.py, with the npm client.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: process.argv[3], maxRetries: 12 });
console.log("ready");
await new Promise((resolve) => process.stdin.once("data", resolve));
const messages = [{ role: "user", content: "Spell cat" }];
const answer = await client.chat.completions.create({ model: "tiny", messages, max_tokens: 16, temperature: 0 });
console.log(answer.choices[0].message.content);
process.exit(0);
