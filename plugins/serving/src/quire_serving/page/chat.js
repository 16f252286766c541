// The conversation: what was said, how it is shown, and the request for the next answer.

const conversation = []; // {role, content, reasoning, element}
let running = null; // the AbortController of the answer that is being streamed

function element(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

function isAtEnd(log) {
  return log.scrollHeight - log.scrollTop - log.clientHeight < 40;
}

function addMessage(role, content) {
  const message = { role, content, reasoning: "", element: element("article", `message ${role}`) };
  message.element.setAttribute("aria-label", role === "user" ? "You" : "Model");
  message.text = element("div", "text", content);
  message.element.append(message.text);
  conversation.push(message);
  byId("empty").hidden = true;
  const log = byId("log");
  log.append(message.element);
  log.scrollTop = log.scrollHeight;
  return message;
}

function addText(message, content, reasoning) {
  const log = byId("log");
  const follows = isAtEnd(log);
  if (reasoning) {
    if (!message.thoughts) {
      const details = element("details", "");
      message.thoughts = element("div", "text");
      details.append(element("summary", "", "Reasoning"), message.thoughts);
      message.element.prepend(details);
    }
    message.reasoning += reasoning;
    message.thoughts.append(reasoning);
  }
  message.content += content;
  message.text.append(content);
  if (follows) log.scrollTop = log.scrollHeight;
}

function settings() {
  const values = {};
  for (const input of byId("settings").querySelectorAll("input")) {
    if (input.value !== "") values[input.dataset.field] = Number(input.value);
  }
  const stop = byId("stop-strings").value.split("\n").filter(Boolean);
  if (stop.length) values.stop = stop;
  return values;
}

function requestBody() {
  const body = { model: byId("model").value, stream: true, stream_options: { include_usage: true }, ...settings() };
  if (byId("mode").value === "completion") {
    body.prompt = conversation.map((message) => message.content).join("");
    return body;
  }
  const system = byId("system").value.trim();
  const said = conversation.filter((message) => message.content);
  body.messages = said.map(({ role, content }) => ({ role, content }));
  if (system) body.messages.unshift({ role: "system", content: system });
  return body;
}

function statistics(times, usage, ending) {
  const parts = [];
  if (times.first) parts.push(`first token after ${Math.round(times.first - times.start)} ms`);
  if (usage) {
    parts.push(`${usage.completion_tokens} tokens`);
    const seconds = (times.last - times.first) / 1000;
    if (seconds > 0 && usage.completion_tokens > 1) {
      parts.push(`${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s`);
    }
  }
  if (ending === "length") parts.push("cut at the token limit");
  if (ending === "abort") parts.push("stopped");
  return parts.join(" · ");
}

async function streamInto(answer, body, signal) {
  const path = body.prompt === undefined ? "v1/chat/completions" : "v1/completions";
  const times = { start: performance.now(), first: 0, last: 0 };
  let usage = null;
  let ending = "";
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
    if (!response.ok) throw await failureOf(response);
    for await (const chunk of events(response.body)) {
      if (chunk.usage) usage = chunk.usage;
      const choice = chunk.choices && chunk.choices[0];
      if (!choice) continue;
      const delta = choice.delta || { content: choice.text };
      const reasoning = delta.reasoning_content || delta.reasoning || "";
      if (delta.content || reasoning) {
        times.last = performance.now();
        times.first = times.first || times.last;
        addText(answer, delta.content || "", reasoning);
      }
      ending = choice.finish_reason || ending;
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    ending = "abort";
  } finally {
    answer.element.append(element("p", "stats", statistics(times, usage, ending)));
  }
}

function lacksTemplate(error) {
  return error instanceof ServerError && error.code === "chat_template_missing";
}

async function answerNow() {
  const body = requestBody();
  const answer = addMessage("assistant", "");
  answer.element.classList.add("is-streaming");
  running = new AbortController();
  notice("");
  showButtons();
  try {
    await streamInto(answer, body, running.signal);
  } catch (error) {
    const failure = element("p", "error", inPlainWords(error));
    failure.setAttribute("role", "alert");
    answer.element.append(failure);
    if (lacksTemplate(error)) {
      byId("mode").value = "completion";
      notice("This model has no chat template: completion mode continues plain text. Regenerate to try again.");
    }
    if (error.status === 401) byId("key").focus();
  } finally {
    running = null;
    answer.element.classList.remove("is-streaming");
    showButtons();
  }
}

function send() {
  const input = byId("input");
  const text = input.value;
  const invalid = document.querySelector("#settings input:invalid");
  if (running || !text.trim()) return;
  if (invalid) {
    notice(`${invalid.parentElement.firstChild.textContent.trim()}: ${invalid.validationMessage}`);
    return;
  }
  input.value = "";
  grow(input);
  addMessage("user", text);
  answerNow();
}

function regenerate() {
  const last = conversation.at(-1);
  if (running || !last || last.role !== "assistant") return;
  conversation.pop().element.remove();
  answerNow();
}

function clearAll() {
  if (running) running.abort();
  for (const message of conversation.splice(0)) message.element.remove();
  byId("empty").hidden = false;
  notice("");
  showButtons();
  byId("input").focus();
}

function stop() {
  if (running) running.abort();
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function showButtons() {
  byId("send").hidden = Boolean(running);
  byId("stop").hidden = !running;
  byId("regenerate").disabled = Boolean(running) || !conversation.length;
}

function grow(input) {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}
