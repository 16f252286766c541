// Talking to the server: requests with the key, errors in plain words, server-sent events, metrics.

const byId = (id) => document.getElementById(id);

function request(path, options = {}) {
  const key = byId("key").value.trim();
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  return fetch(new URL(path, document.baseURI), { ...options, headers, cache: "no-store", credentials: "omit" });
}

class ServerError extends Error {
  constructor(message, code = "", status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

const ADVICE = {
  401: "This server wants an API key: enter it at the top of the page.",
  403: "The server does not allow this request.",
  429: "The server is busy: its queue is full.",
  503: "The server cannot answer right now.",
};

function errorOf(body, status, retryAfter) {
  const error = (body && body.error) || {};
  const said = typeof error === "string" ? error : error.message;
  let message = ADVICE[status] || said || `The server answered with status ${status}.`;
  if (ADVICE[status] && said && status !== 401) message += ` It said: ${said}.`;
  if (retryAfter) message += ` Try again in ${retryAfter} s.`;
  return new ServerError(message, error.code || "", status);
}

async function failureOf(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // A proxy's page, or nothing: the status has to do.
  }
  return errorOf(body, response.status, response.headers.get("Retry-After"));
}

async function getJson(path) {
  const response = await request(path);
  if (!response.ok) throw await failureOf(response);
  return response.json();
}

function inPlainWords(error) {
  if (error instanceof ServerError) return error.message;
  if (error instanceof TypeError) return "The server cannot be reached, or the connection broke.";
  return String(error.message || error);
}

// Yields the parsed payload of each event. A stream that ends without [DONE] was cut off.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ServerError("The connection ended before the answer was complete.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const payload = JSON.parse(data);
      if (payload.error) throw errorOf(payload, 0, null);
      yield payload;
    }
  }
}

// Prometheus text as {name: sum over labels}; the prefix (quire:, vllm:) and _total are taken off.
function parseMetrics(text) {
  const values = {};
  for (const line of text.split("\n")) {
    const match = /^(?:\w+:)?([a-zA-Z_]\w*)(?:\{.*\})? (\S+)/.exec(line);
    if (!match) continue;
    const name = match[1].replace(/_total$/, "");
    values[name] = (values[name] || 0) + Number(match[2]);
  }
  return values;
}
